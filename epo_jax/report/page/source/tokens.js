// A strategy token by token, tinted by how likely each was or by its weight in the loss.
// Weight: advantage / (turns of the episode × tokens of the turn), the coefficient of the token's log-probability.

const TINTS = { logprob: "log-probability", weight: "weight in the loss", none: "no tint" };
let tint = "logprob";

const tintOf = (logprob) => `${Math.round(55 * Math.min(1, -logprob / 3))}%`; // full at a probability of 5 %

function tokenWeight(conversation, number) {
  const turn = conversation.turns[number];
  if (turn.advantage === undefined || !Array.isArray(turn.said)) return null;
  if (conversation.why !== undefined || number >= (conversation.fits ?? Infinity)) return 0; // not learned from
  return turn.advantage / (conversation.turns.length * turn.said.length);
}

function largestWeight(conversation) {
  return Math.max(0, ...conversation.turns.map((_, number) => Math.abs(tokenWeight(conversation, number) ?? 0)));
}

function tintedStrategy(conversation, number, largest) {
  const turn = conversation.turns[number];
  const pieces = piecesOf(turn);
  if (!pieces || tint === "none") return said(strategyOf(turn), "strategy");
  const node = el("div", { class: "said strategy tokens" });
  const weight = tokenWeight(conversation, number);
  let begun = false;
  pieces.forEach((piece, index) => {
    const text = begun ? piece.text : piece.text.trimStart(); // a space before the first word is the tokenizer's
    begun ||= text !== "";
    const token = el("span", { class: piece.special ? "token special" : "token" }, piece.special ? piece.text : text || "·");
    const logprob = turn.logprobs ? -turn.logprobs[index] / 100 : null;
    const words = [];
    if (logprob !== null) words.push(`log-probability ${formatted(logprob)} (${formatted(Math.exp(logprob), "percent")})`);
    if (weight !== null) words.push(`weight in the loss ${formatted(weight, "tiny", true)}`);
    token.title = words.join("\n");
    if (tint === "logprob" && logprob !== null) {
      token.classList.add("unlikely");
      token.style.setProperty("--much", tintOf(logprob));
    } else if (tint === "weight" && weight) {
      token.classList.add(weight > 0 ? "raised" : "lowered");
      token.style.setProperty("--much", `${Math.round(12 + (55 * Math.abs(weight)) / largest)}%`);
    }
    node.append(token);
  });
  return node;
}

function tintSwitch(redraw) {
  const group = el("div", { class: "switch", role: "radiogroup", "aria-label": "Tint of the strategies' tokens" });
  for (const [name, words] of Object.entries(TINTS)) {
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
  return el("p", { class: "legend" }, "Strategies as text.");
}
