// Numbers as people read them, and tables of them.

const MINUS = "\u2212";
const PER_CENT = "\u00a0%"; // never parted from its number

function formatted(value, form = "number", signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (form === "percent") text = (100 * size).toFixed(size > 0 && size < 0.01 ? 2 : 1) + PER_CENT;
  else if (form === "points") text = (100 * size).toFixed(1);
  else if (form === "count") text = size >= 100 || Number.isInteger(size) ? Math.round(size).toLocaleString("en") : size.toFixed(1);
  else if (form === "fixed") text = size.toFixed(3);
  else if (form === "hundredths") text = size.toFixed(2);
  else if (form === "tiny") text = size === 0 ? "0" : size < 0.001 ? size.toExponential(1) : size.toPrecision(2);
  else if (Number.isInteger(size) && size < 1e6) text = size.toLocaleString("en");
  else if (size !== 0 && (size < 0.001 || size >= 1e6)) text = size.toExponential(2);
  else text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(3);
  const zero = !/[1-9]/.test(text);
  return (value < 0 && !zero ? MINUS : signed && !zero ? "+" : "") + text.replace("e-", `e${MINUS}`);
}

function interval(low, high, form, signed = false) {
  return `[${formatted(low, form, signed)}, ${formatted(high, form, signed)}]`;
}

// columns: [{title, left}]; rows: lists of texts or nodes. Wide tables scroll by themselves.
function table(columns, rows, caption = null, className = null) {
  const head = el(
    "tr",
    {},
    columns.map((column) => el("th", { scope: "col", class: column.left ? "left" : "" }, column.title)),
  );
  const body = rows.map((row) =>
    el(
      "tr",
      {},
      row.map((cell, index) =>
        el(index === 0 ? "th" : "td", { scope: index === 0 ? "row" : null, class: columns[index].left ? "left" : "" }, cell),
      ),
    ),
  );
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption ?? "table" },
    el("table", { class: className }, el("thead", {}, head), el("tbody", {}, body)),
  );
}
