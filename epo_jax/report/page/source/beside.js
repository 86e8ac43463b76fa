// The same task in several rounds, side by side: how the strategies changed. Also both seats of one conversation.

const MOST_BESIDE = 6;

function besideView(parameters) {
  const episode = episodeById.get(parameters.get("task"));
  const view = el("div", { class: "view" });
  if (!episode) {
    view.append(el("p", { class: "note" }, "There is no such episode."));
    return view;
  }
  const same = sameTask(episode);
  const other = otherSeat(episode);
  const others = other ? [...same, other] : same;
  const asked = (parameters.get("shown") ?? "")
    .split(",")
    .map((id) => episodeById.get(id))
    .filter((one) => others.includes(one));
  const shown = asked.length ? asked : twoOf(same);
  const toggles = el("div", { class: "toggles", role: "group", "aria-label": "Which episodes are shown" });
  for (const one of others) {
    const on = shown.includes(one);
    const next = others.filter((each) => (each === one ? !on : shown.includes(each))).slice(-MOST_BESIDE);
    const onclick = () => (location.hash = address("beside", { task: episode.id, shown: next.map((each) => each.id).join(",") }));
    toggles.append(
      el("button", { type: "button", class: "toggle", "aria-pressed": String(on), onclick }, resultMark(one), besideName(one, others, true)),
    );
  }
  view.append(
    el("p", { class: "away" }, el("a", { href: address("episodes", { open: episode.id }) }, "← back to the episode")),
    el("h2", {}, episode.task),
    toggles,
  );
  const place = el("div", { class: "beside", tabindex: 0, role: "region", "aria-label": "Episodes side by side" });
  view.append(place);
  view.drawn = Promise.all(shown.map(conversationOf)).then((conversations) => drawBeside(place, shown, others, conversations));
  return view;
}

// One of the first and one of the last round; where only one round has the task, the best and the worst of it by reward.
function twoOf(same) {
  if (same[0].file !== same.at(-1).file) return [same[0], same.at(-1)];
  const scored = same.filter((one) => one.masked === null && one.reward !== null);
  const [first, ...others] = sorted(scored.length ? scored : same, "best");
  return others.length ? [first, others.at(-1)] : [first];
}

// others: what it is to be told from; where a round has several of the task, their number tells them apart.
function besideName(episode, others, withReward = false) {
  const words = [phaseName(episode.file)];
  if (episode.seat !== "agent") words.push(`seat ${episode.seat}`);
  const alike = others.filter((one) => one.file === episode.file && one.seat === episode.seat);
  if (alike.length > 1) {
    words.push(`no. ${alike.indexOf(episode) + 1}`);
    if (withReward && episode.reward !== null) words.push(`reward ${formatted(episode.reward, "hundredths")}`);
  }
  return words.join(", ");
}

function drawBeside(place, shown, others, conversations) {
  place.style.setProperty("--columns", shown.length);
  const known = conversations.filter(Boolean);
  shown.forEach((episode, index) => {
    const conversation = conversations[index];
    const head = el(
      "header",
      {},
      resultMark(episode),
      el("a", { href: address("episodes", { open: episode.id }) }, besideName(episode, others)),
      el("span", { class: "note" }, `reward ${formatted(episode.reward)}, ${episode.turns} turns`),
    );
    place.append(
      cell(head, index, 0, "head"),
      cell(said(conversation?.first ?? "This conversation is not in the page."), index, 1, "first"),
    );
  });
  const longest = Math.max(0, ...known.map((conversation) => conversation.turns.length));
  let parted = false;
  for (let number = 0; number < longest; number++) {
    const strategies = new Set(known.map((conversation) => (conversation.turns[number] ? strategyOf(conversation.turns[number]) : null)));
    const parts = !parted && strategies.size > 1 && shown.every((episode) => episode.seat === shown[0].seat);
    parted ||= parts;
    conversations.forEach((conversation, index) => {
      const turn = conversation?.turns[number];
      if (!turn) return;
      const picked = rolesOf(shown[index]).judged && turn.process > 0;
      const content = el(
        "div",
        { class: picked ? "side-turn picked" : "side-turn" },
        el(
          "p",
          { class: "side-number" },
          `turn ${number + 1}`,
          picked ? " ★" : null,
          parts ? el("span", { class: "chip" }, "first difference") : null,
          turn.advantage === undefined
            ? null
            : el("span", { class: "side-advantage" }, `advantage ${formatted(turn.advantage, "number", true)}`),
        ),
        tintedStrategy(conversation, number, largestWeight(conversation)),
        said(turn.action, "action"),
        said(turn.seen, "seen"),
      );
      place.append(cell(content, index, number + 2, ""));
    });
  }
}

function cell(content, column, row, className) {
  const node = el("div", { class: `cell ${className}` }, content);
  node.style.gridColumn = column + 1;
  node.style.gridRow = row + 1;
  return node;
}
