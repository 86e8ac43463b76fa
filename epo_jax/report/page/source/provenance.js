// Provenance: what the run was started with, and which weights played when.

// A narrow screen may break a field's name behind its dots, and nowhere else.
function brokenAtDots(field) {
  return field.split(/(?<=\.)/).flatMap((part, index) => (index ? [el("wbr"), part] : [part]));
}

function provenanceView() {
  const { preset, config, starts, lineage, data } = run.origin;
  const view = el("div", { class: "view" }, el("h2", {}, "Provenance"));
  const differing = config.filter((field) => field[3]);
  const body = el("div");
  const only = el("input", { type: "checkbox", checked: true });
  function draw() {
    const rows = (only.checked ? differing : config).map(([field, value, before, differs]) => [
      el(differs ? "strong" : "span", { class: "field" }, brokenAtDots(field)),
      value === "" ? "(empty)" : value,
      differs ? (before === null ? "not in it" : before === "" ? "(empty)" : before) : "same",
    ]);
    body.replaceChildren(
      rows.length
        ? table(
            ["field", "this run", preset].map((title) => ({ title, left: true })),
            rows,
            "Configuration",
          )
        : el("p", { class: "note" }, "Nothing differs."),
    );
  }
  only.addEventListener("change", draw);
  draw();
  view.append(
    el("h3", {}, "Configuration"),
    el("p", { class: "bar" }, el("label", {}, only, ` only what differs from ${preset} (${differing.length} of ${config.length} fields)`)),
    body,
    data ? el("p", {}, `Learned from ${data}.`) : (null ?? ""),
    el("h3", {}, "Starts"),
  );
  starts.forEach((start, index) => {
    view.append(
      el(
        "div",
        { class: "start" },
        el("p", {}, el("strong", {}, index ? `resumed ${start.time}` : `begun ${start.time}`)),
        said(start.command, "command"),
        el(
          "p",
          { class: "note" },
          `seed ${start.seed}; ${start.devices.join(", ")}; Python ${start.python}; ${start.versions.map((pair) => pair.join(" ")).join(", ")}`,
        ),
      ),
    );
  });
  view.append(
    el("h3", {}, "Weights"),
    table(
      [
        { title: "when", left: true },
        { title: "weights", left: true },
        { title: "what for, or where", left: true },
      ],
      lineage,
      "Weights",
    ),
  );
  return view;
}
