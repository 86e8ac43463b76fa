// One episode as a conversation: strategy, action and observation of every turn, with its reward, the judge's and its advantage.

const ENDS = new Map([
  ["done", "the environment ended it"],
  ["max_turns", "out of turns"],
  ["context", "out of context"],
]);

function resultMark(episode) {
  if (episode.masked !== null) return el("span", { class: "mark masked", title: "masked", role: "img", "aria-label": "masked" }, "?");
  if (episode.success === null)
    return el("span", { class: "mark", title: "one state, not played on", role: "img", "aria-label": "one state, not played on" }, "·");
  return episode.success
    ? el("span", { class: "mark success", title: "success", role: "img", "aria-label": "success" }, "✓")
    : el("span", { class: "mark failure", title: "no success", role: "img", "aria-label": "no success" }, "×");
}

// The other episodes of the same task from the same seat, in the order in which they were played. A state alone has none.
function sameTask(episode) {
  return episodes.filter(
    (other) =>
      other.task === episode.task &&
      other.environment === episode.environment &&
      other.seat === episode.seat &&
      (other === episode || (other.file.phase !== "states" && episode.file.phase !== "states")),
  );
}

// The other seat of the same conversation, where the strategist had both.
function otherSeat(episode) {
  return episodes.find(
    (other) =>
      other.file === episode.file &&
      other.seed === episode.seed &&
      other.environment === episode.environment &&
      other.seat !== episode.seat,
  );
}

function facts(episode, conversation) {
  const pairs = [
    ["played in", phaseName(episode.file)],
    ["reward", episode.success === null ? null : formatted(episode.reward)],
    ["turns", String(episode.turns)],
    ["ended", episode.success === null ? null : (conversation?.ended_by ?? ENDS.get(episode.end) ?? episode.end)],
    ["scenario", conversation?.scenario],
    ["scores", conversation?.scores],
    ["weights", episode.weights],
    ["actor", episode.actor],
    ["judge", episode.judge],
    ["kind", episode.kind],
    ["seat", episode.seat === "agent" ? null : episode.seat],
    ["met", episode.partner ? partnerName(episode.partner) : null],
    ["temperature", formatted(episode.temperature)],
    ["seed", String(episode.seed)],
    ["kept in", `${episode.file.name}, line ${episode.place + 1}`],
  ];
  return el(
    "dl",
    { class: "facts" },
    pairs.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

async function episodeArticle(episode) {
  const conversation = await conversationOf(episode);
  const article = el("article", { class: "episode", "aria-label": `Episode of ${episode.task}` });
  const others = sameTask(episode);
  article.append(
    el("header", {}, resultMark(episode), el("h3", {}, episode.task), el("span", { class: "chip" }, episode.environment)),
    facts(episode, conversation),
  );
  const links = el("p", { class: "bar" });
  if (others.length > 1)
    links.append(
      el("a", { class: "button", href: address("beside", { task: episode.id }) }, `This task side by side: ${others.length} episodes`),
    );
  const other = otherSeat(episode);
  if (other)
    links.append(
      el(
        "a",
        { class: "button", href: address("beside", { task: episode.id, shown: `${episode.id},${other.id}` }) },
        "Both seats side by side",
      ),
    );
  if (links.children.length) article.append(links);
  if (!conversation) {
    article.append(
      el(
        "p",
        { class: "note" },
        `This conversation is not in the page, which would be too large: it is line ${episode.place + 1} of ${episode.file.name}.`,
      ),
    );
    return article;
  }
  if (conversation.why !== undefined)
    article.append(el("p", { class: "alert" }, "Masked, so nothing is learned from it: ", said(conversation.why)));
  const roles = rolesOf(episode);
  const turns = el("ol", { class: "turns" });
  const legend = el("div");
  function redraw() {
    const largest = largestWeight(conversation);
    turns.replaceChildren(...conversation.turns.map((_, number) => turnItem(conversation, number, largest, roles)));
    legend.replaceChildren(tintLegend(conversation));
  }
  if (conversation.turns.some((turn) => Array.isArray(turn.said))) article.append(el("div", { class: "bar" }, tintSwitch(redraw, conversation), legend));
  if (conversation.judge?.reasoning)
    article.append(el("section", { class: "reasoning" }, el("h4", {}, "The judge's reasons"), said(conversation.judge.reasoning)));
  if (conversation.first) article.append(line("Environment", said(conversation.first), "opening"));
  article.append(turns);
  redraw();
  return article;
}

function line(speaker, node, className = "") {
  return el("div", { class: `line ${className}` }, el("span", { class: "speaker" }, speaker), node);
}

// speaker: who says what is shown as a strategy, the strategist, in StepAgent the policy itself, or the expert whose episode was inspected;
// doer: who acts on it. judged: whether process rewards are a judge's picks, and not a discriminator's.
function rolesOf(episode) {
  const judged = episode.judge !== null && episode.judge !== "discriminator";
  if (episode.file.phase === "inspection" || episode.actor === "expert") return { speaker: "Expert", doer: "Action", judged };
  return episode.actor === "policy" ? { speaker: "Policy", doer: "Action", judged } : { speaker: "Strategist", doer: "Actor", judged };
}

// What the policy would have said in the expert's place.
function insteadLine(instead) {
  const node = el("div", { class: "instead" }, tinted(instead, null, 0));
  node.append(el("span", { class: "chip" }, instead.same ? "= says the same" : "≠ says something else"));
  return line("Policy", node);
}

function turnItem(conversation, number, largest, { speaker, doer, judged }) {
  const turn = conversation.turns[number];
  const reason = conversation.judge?.reasons?.[number];
  const picked = judged && turn.process > 0;
  return el(
    "li",
    { class: picked ? "turn picked" : "turn" },
    el(
      "div",
      { class: "number", title: picked ? "picked by the judge" : null },
      String(number + 1),
      picked ? el("span", { class: "star", role: "img", "aria-label": "picked by the judge" }, "★") : null,
    ),
    el(
      "div",
      { class: "exchange" },
      line(speaker, tintedStrategy(conversation, number, largest)),
      turn.instead ? insteadLine(turn.instead) : null,
      turn.cut ? el("p", { class: "small-note" }, "cut off at the limit of its length") : null,
      turn.action ? line(doer, said(turn.action, "action")) : null,
      turn.seen ? line("Environment", said(turn.seen, "seen")) : null,
      reason ? line("Judge", said(reason, "reason")) : null,
      number >= (conversation.fits ?? Infinity) ? el("p", { class: "small-note" }, "beyond learn.max_length: not learned from") : null,
    ),
    turnNumbers(turn, conversation.judge?.grades?.[number], judged),
  );
}

function turnNumbers(turn, grade, judged) {
  const rows = turn.reward === undefined ? [] : [["reward", turn.reward]];
  if (turn.progress !== undefined) rows.push(["progress", turn.progress]);
  if (grade) rows.push(["grade", Number(grade)]);
  if (turn.process !== undefined) rows.push([judged ? "judge" : "process", turn.process]);
  if (turn.advantage !== undefined) rows.push(["advantage", turn.advantage]);
  const list = el("dl", { class: "numbers" });
  for (const [name, value] of rows) {
    const signed = name === "judge" || name === "process" || name === "advantage";
    list.append(
      el("div", { class: value ? name : `${name} nothing` }, el("dt", {}, name), el("dd", {}, formatted(value, "number", signed))),
    );
  }
  if (turn.advantage !== undefined) list.append(advantageBar(turn.advantage));
  return list;
}

// From the middle to the right for a raised strategy, to the left for a lowered one; full at 2.
function advantageBar(advantage) {
  const width = 60 * Math.min(1, Math.abs(advantage) / 2);
  return svg(
    "svg",
    { class: "advantage-bar", width: 120, height: 8, "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 3.5, width: 120, height: 1 }),
    svg("line", { x1: 60, x2: 60, y1: 0, y2: 8 }),
    svg("rect", { class: advantage < 0 ? "lowered" : "raised", x: advantage < 0 ? 60 - width : 60, y: 1.5, width, height: 5 }),
  );
}
