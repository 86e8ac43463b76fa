// A strategy token by token, tinted by how likely each was or by its weight in the loss, or with both in numbers.
// Weight: the coefficient of the token's log-probability, advantage / divisor as learn.normalisation says (epo_jax/batch.py).

const TINTS = { logprob: "log-probability", weight: "weight in the loss", numbers: "both in numbers", none: "no tint" };
const DIVISORS = {
  turn: (conversation, turn) => conversation.turns.length * turn.said.length,
  trajectory: (conversation) => conversation.turns.reduce((sum, turn) => sum + (Array.isArray(turn.said) ? turn.said.length : 0), 0),
  token: () => 1, // and by the tokens of the optimizer step, which the page does not know: alike for all tokens that stand here
};
const divisorOf = DIVISORS[run.run.normalisation] ?? DIVISORS.turn;
const WEIGHT = run.run.normalisation === "token" ? "weight in the loss, times the step's tokens" : "weight in the loss";
let tint = "logprob";

const tintOf = (logprob) => `${Math.round(55 * Math.min(1, -logprob / 3))}%`; // full at a probability of 5 %

// One weight a token; null where there is none.
function tokenWeights(conversation, number) {
  const turn = conversation.turns[number];
  if (turn.advantage === undefined || !Array.isArray(turn.said)) return null;
  if (conversation.why !== undefined || number >= (conversation.fits ?? Infinity)) return turn.said.map(() => 0); // not learned from
  const divisor = divisorOf(conversation, turn);
  return turn.said.map((_, index) => (turn.advantages?.[index] ?? turn.advantage) / divisor);
}

function largestWeight(conversation) {
  return Math.max(0, ...conversation.turns.flatMap((_, number) => (tokenWeights(conversation, number) ?? []).map(Math.abs)));
}

function tintedStrategy(conversation, number, largest) {
  return tinted(conversation.turns[number], tokenWeights(conversation, number), largest);
}

// turn: anything with `said` and perhaps `logprobs`.
function tinted(turn, weights, largest) {
  const pieces = piecesOf(turn);
  if (!pieces || tint === "none") return said(strategyOf(turn), "strategy");
  const node = el("div", { class: "said strategy tokens" });
  let begun = false;
  pieces.forEach((piece, index) => {
    const text = begun ? piece.text : piece.text.trimStart(); // a space before the first word is the tokenizer's
    begun ||= text !== "";
    const token = el("span", { class: piece.special ? "token special" : "token" }, piece.special ? piece.text : text || "·");
    const logprob = turn.logprobs ? -turn.logprobs[index] / 100 : null;
    const weight = weights === null ? null : weights[index];
    const words = [];
    if (logprob !== null) words.push(`log-probability ${formatted(logprob)} (${formatted(Math.exp(logprob), "percent")})`);
    if (weight !== null) words.push(`${WEIGHT} ${formatted(weight, "tiny", true)}`);
    token.title = words.join("\n");
    if (tint === "logprob" && logprob !== null) {
      token.classList.add("unlikely");
      token.style.setProperty("--much", tintOf(logprob));
    } else if (tint === "weight" && weight) {
      token.classList.add(weight > 0 ? "raised" : "lowered");
      token.style.setProperty("--much", `${Math.round(12 + (55 * Math.abs(weight)) / largest)}%`);
    }
    if (tint === "numbers") addNumbers(token, logprob, weight);
    node.append(token);
  });
  return node;
}

// Under the token, for whoever cannot point at it or tell tints apart.
function addNumbers(token, logprob, weight) {
  token.classList.add("numbered");
  token.append(el("small", {}, logprob === null ? "–" : formatted(logprob, "hundredths")));
  if (weight !== null) token.append(el("small", {}, formatted(weight, "tiny", true)));
}

// Whether any token has a log-probability: an expert's have none, as nobody sampled them.
function hasLogprobs(conversation) {
  return conversation.turns.some((turn) => turn.logprobs || turn.instead?.logprobs);
}

function tintSwitch(redraw, conversation) {
  const group = el("div", { class: "switch", role: "radiogroup", "aria-label": "Tint of the strategies' tokens" });
  const offered = Object.entries(TINTS).filter(([name]) => hasLogprobs(conversation) || (name !== "logprob" && name !== "numbers"));
  for (const [name, words] of offered) {
    const input = el("input", { type: "radio", name: "tint", value: name, checked: name === tint });
    input.addEventListener("change", () => {
      tint = name;
      redraw();
    });
    group.append(el("label", {}, input, el("span", {}, words)));
  }
  return group;
}

function tintLegend(conversation) {
  if (!hasLogprobs(conversation) && (tint === "logprob" || tint === "numbers"))
    return el("p", { class: "legend" }, "These tokens have no log-probabilities: nobody sampled them.");
  if (tint === "logprob") {
    const samples = [0, -0.7, -1.5, -3].map((logprob) => {
      const sample = el("span", { class: "token unlikely" }, formatted(Math.exp(logprob), "percent").replace(/\.\d+/, ""));
      sample.style.setProperty("--much", tintOf(logprob));
      return sample;
    });
    return el("p", { class: "legend" }, "The stronger the tint, the less likely the token was: ", samples);
  }
  if (tint === "weight" && !conversation.turns.some((turn) => turn.advantage !== undefined)) {
    return el("p", { class: "legend" }, "No turn has an advantage: nothing was learned from this episode.");
  }
  if (tint === "weight") {
    const [up, down] = [el("span", { class: "token raised" }, "made likelier"), el("span", { class: "token lowered" }, "made less likely")];
    for (const sample of [up, down]) sample.style.setProperty("--much", "50%");
    return el("p", { class: "legend" }, up, " ", down, " the stronger the tint, the more; without one it does not count");
  }
  if (tint === "numbers")
    return el("p", { class: "legend" }, `Under each token its log-probability; below it, where it was learned from, its ${WEIGHT}.`);
  return el("p", { class: "legend" }, "Strategies as text.");
}
