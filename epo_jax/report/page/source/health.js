// Health: warnings and what usually helps, masked episodes and why, caches and compilations.

function roundsInWords(rounds) {
  return rounds.length === 1 ? `round ${rounds[0]}` : `${rounds.length} rounds, ${rounds[0]} to ${rounds.at(-1)}`;
}

function healthView() {
  const { warnings, unreadable, masked, rounds } = run.health;
  const view = el("div", { class: "view" }, el("h2", {}, "Health"));
  if (!warnings.length && !unreadable.length)
    view.append(
      el(
        "p",
        { class: "fine" },
        "✓ No rule is broken: entropy, repetition and length of strategies, advantages, judge, masks, learner against sampler, held-out tasks.",
      ),
    );
  for (const sentence of unreadable)
    view.append(el("div", { class: "alert" }, el("h3", {}, "! Not everything could be shown"), said(sentence)));
  for (const warning of warnings) {
    view.append(
      el(
        "div",
        { class: "alert" },
        el("h3", {}, `! ${warning.name}`),
        el("p", {}, `${roundsInWords(warning.rounds)}: ${warning.what}.`),
        el("p", { class: "note" }, warning.do),
      ),
    );
  }
  view.append(el("h3", {}, "Masked episodes"));
  if (masked.length)
    view.append(
      table(
        [{ title: "file", left: true }, { title: "episodes" }, { title: "why", left: true }],
        masked.map(([file, count, why]) => [file, formatted(count, "count"), why]),
        "Masked episodes",
      ),
    );
  else view.append(el("p", { class: "note" }, "None: no actor or judge failed for good."));
  view.append(el("h3", {}, "Work, by round"));
  if (rounds.rows.length)
    view.append(
      table(
        [{ title: "round", left: true }, ...rounds.columns.map(([title]) => ({ title }))],
        rounds.rows.map((row) => row.map((value, index) => (index ? formatted(value, rounds.columns[index - 1][1]) : String(value)))),
        "Work, by round",
      ),
    );
  else view.append(el("p", { class: "note" }, "No round is over yet."));
  return view;
}
