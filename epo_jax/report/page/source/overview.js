// The first view: how the run stands, and its curves by round and by optimizer step.

const AXES = { round: ["by round", "round"], step: ["by optimizer step", "step"], warm_start: ["warm start", "step"] };

function overviewView(parameters) {
  const axes = Object.keys(AXES).filter((axis) => axis in run.curves);
  const axis = axes.includes(parameters.get("axis")) ? parameters.get("axis") : axes[0];
  const view = el("div", { class: "view" }, el("h2", { class: "hidden" }, "Overview"), standing());
  if (!axis) {
    view.append(el("p", { class: "note" }, "Curves appear when the first round is over."));
    return view;
  }
  const { charts, resumes } = run.curves[axis];
  const switches = el("div", { class: "switch", role: "group", "aria-label": "What the curves run over" });
  for (const name of axes) {
    switches.append(el("a", { href: address("overview", { axis: name }), "aria-current": name === axis ? "true" : null }, AXES[name][0]));
  }
  const note = resumes.length
    ? el("p", { class: "note" }, `▾ marks where the run was resumed (${resumes.length === 1 ? "once" : `${resumes.length} times`}).`)
    : null;
  const drawn = charts.map((spec) => chart(spec, resumes, AXES[axis][1]));
  const grid = el("div", { class: "charts" }, drawn);
  view.append(el("div", { class: "bar" }, switches, note), grid);
  if (axis === "round") view.append(allFigures());
  new ResizeObserver(() => {
    const width = drawn[0]?.querySelector(".keys").clientWidth; // all columns of the grid are alike
    if (width) for (const each of drawn) each.draw(width);
  }).observe(grid);
  return view;
}

function standing() {
  const counts = {};
  for (const { phase, rows } of run.episodes.files) counts[phase] = (counts[phase] ?? 0) + rows.length;
  const total = run.run.rounds;
  const demonstrated = run.episodes.files.some((file) => file.demonstrated && file.phase === "round");
  const whose = counts.inspection ? "of the expert's, inspected; " : demonstrated ? "of the expert's, demonstrations; " : "";
  const tiles = [tile("Rounds done", String(run.run.done), run.origin.data ? "passes over recorded data" : total ? `of ${total}` : "")];
  tiles.push(
    tile(
      "Episodes",
      formatted((counts.round ?? 0) + (counts.inspection ?? 0), "count"),
      `${whose}${formatted(counts.evaluation ?? 0, "count")} more on held-out tasks`,
      address("episodes"),
    ),
  );
  for (const found of run.evaluations.filter((each) => !each.title.includes("bought")).slice(0, 4)) {
    const [first, newest] = [found.rows[0], found.rows.at(-1)];
    const last = found.rows.findLast((row) => row.mean !== null);
    const form = first.shares ? "percent" : "number";
    if (!last) {
      tiles.push(tile(`${found.title}, held out`, "–", "every episode failed", address("evaluation"), true));
      continue;
    }
    let change = `95 % interval ${interval(last.low, last.high, form)}`;
    if (last.difference !== undefined) {
      const points = last.shares ? "points" : "number";
      const range = interval(last.difference_low, last.difference_high, points, true);
      change = `${formatted(last.difference, points, true)}${last.shares ? " points" : ""} ${range} since the first`;
    }
    if (last !== newest) change = `${last.label}, ${change}; ${newest.label}: –, every episode failed`;
    tiles.push(tile(`${found.title}, held out`, formatted(last.mean, form), change, address("evaluation"), last !== newest));
  }
  const warnings = run.health.warnings.length + run.health.unreadable.length;
  tiles.push(
    tile(
      "Warnings",
      String(warnings),
      [...run.health.warnings.map((warning) => warning.name), ...(run.health.unreadable.length ? ["not everything could be shown"] : [])].join("; ") ||
        "none of the rules is broken",
      address("health"),
      warnings > 0,
    ),
  );
  return el("div", { class: "tiles" }, tiles);
}

function tile(label, value, more, href = null, alarming = false) {
  return el(
    href ? "a" : "div",
    { class: alarming ? "tile alarm" : "tile", href },
    el("span", { class: "label" }, label),
    el("span", { class: "figure" }, value),
    el("span", { class: "more-words" }, more),
  );
}

function allFigures() {
  const details = el("details", {}, el("summary", {}, "All figures of all rounds, as a table"));
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const columns = [{ title: "figure", left: true }, ...run.rounds.rows.map((row) => ({ title: `round ${row[0]}` }))];
    const rows = run.rounds.names.map((name, index) => [name, ...run.rounds.rows.map((row) => formatted(row[index + 1]))]);
    details.append(table(columns, rows, "All figures"));
  });
  return details;
}
