// Evaluations: means with 95 % intervals, drawn and in numbers, and the paired difference to the first.

function evaluationView() {
  const view = el("div", { class: "view" }, el("h2", {}, "Evaluation on held-out tasks"));
  if (!run.evaluations.length) {
    view.append(el("p", { class: "note" }, "Nothing has been evaluated yet."));
    return view;
  }
  view.append(
    el(
      "p",
      { class: "note" },
      "Means over tasks with 95 % bootstrap intervals. Differences are to the table's first line with figures, paired by task.",
    ),
  );
  for (const found of run.evaluations) view.append(el("h3", {}, found.title), evaluationTable(found));
  return view;
}

function evaluationTable(found) {
  const highest = Math.max(...found.rows.map((row) => row.high ?? 0), found.rows[0].shares ? 0.1 : 0);
  const columns = [
    { title: "", left: true },
    { title: "", left: true },
    { title: "mean" },
    { title: "95 % interval", left: true },
    { title: "tasks" },
    { title: "difference", left: true },
    { title: "p" },
    { title: "test", left: true },
  ];
  const rows = found.rows.map((row) => {
    const form = row.shares ? "percent" : "number";
    const points = row.shares ? "points" : "number";
    const known = row.mean !== null;
    const compared = row.difference !== undefined;
    return [
      row.label,
      known ? intervalDrawing(row, highest) : "",
      formatted(row.mean, form),
      known ? interval(row.low, row.high, form) : "every episode failed",
      formatted(row.n, "count"),
      compared
        ? `${formatted(row.difference, points, true)}${row.shares ? " points" : ""} ${interval(row.difference_low, row.difference_high, points, true)}`
        : "–",
      compared ? (row.p < 0.001 ? row.p.toExponential(1).replace("e-", `e${MINUS}`) : row.p.toFixed(3)) : "–",
      compared ? row.test : "",
    ];
  });
  return table(columns, rows, found.title, "even");
}

function intervalDrawing(row, highest) {
  const x = (value) => 4 + (132 * value) / highest;
  return svg(
    "svg",
    { class: "interval", width: 140, height: 16, "aria-hidden": "true" },
    svg("line", { class: "grid", x1: 4, x2: 136, y1: 8, y2: 8 }),
    svg("line", { class: "range", x1: x(row.low), x2: x(row.high), y1: 8, y2: 8 }),
    svg("circle", { class: "dot", cx: x(row.mean), cy: 8, r: 4 }),
  );
}
