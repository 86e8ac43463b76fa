// One chart: lines over rounds or steps, held-out tasks as points with intervals, resumes as vertical marks.
// Lines differ by dash and mark as well as by colour. Arrow keys or the pointer read values off.

const DASHES = ["", "7 4", "2 4", "10 3 2 3"];
const CHART_HEIGHT = 150;
const MARGIN = { left: 44, right: 12, top: 10, bottom: 22 };

// spec: {title, format, lines: [{label, points, held_out}]}; returns an element whose draw(width) draws it anew.
function chart(spec, resumes, xName) {
  const places = [...new Set(spec.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const readout = el("span", { class: "at" });
  const values = spec.lines.map(() => el("span", { class: "value" }));
  const keys = spec.lines.map((line, index) =>
    el("span", { class: "key" }, line.label ? [lineSample(line, index), el("span", {}, line.label)] : null, values[index]),
  );
  const drawing = svg("svg", { class: "plot", role: "img", tabindex: 0, height: CHART_HEIGHT });
  const figure = el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, el("h3", {}, spec.title), readout),
    el("div", { class: "keys" }, keys),
    drawing,
  );
  let cursor = null;
  let scale = null;
  let hair = null;

  function pointAt(line, x) {
    return line.points.findLast((point) => point[0] <= x) ?? line.points[0];
  }

  function say() {
    const x = cursor === null ? places.at(-1) : places[cursor];
    readout.textContent = `${xName} ${x.toLocaleString("en")}`;
    spec.lines.forEach((line, index) => {
      const point = cursor === null ? line.points.at(-1) : pointAt(line, x);
      values[index].textContent = formatted(point[1], spec.format);
      if (point.length > 2) values[index].append(el("small", {}, ` ${interval(point[2], point[3], spec.format)}`));
    });
    if (hair) {
      hair.setAttribute("visibility", cursor === null ? "hidden" : "visible");
      hair.setAttribute("x1", scale.x(x));
      hair.setAttribute("x2", scale.x(x));
    }
  }

  function move(next) {
    cursor = next === null ? null : Math.max(0, Math.min(places.length - 1, next));
    say();
  }

  drawing.addEventListener("pointermove", (event) => {
    if (!scale) return;
    const x = scale.back(event.clientX - drawing.getBoundingClientRect().left);
    let nearest = 0;
    places.forEach((place, index) => {
      if (Math.abs(place - x) < Math.abs(places[nearest] - x)) nearest = index;
    });
    move(nearest);
  });
  drawing.addEventListener("pointerleave", () => move(null));
  drawing.addEventListener("blur", () => move(null));
  drawing.addEventListener("keydown", (event) => {
    const now = cursor ?? places.length - 1;
    const next = { ArrowLeft: cursor === null ? now : now - 1, ArrowRight: now + 1, Home: 0, End: places.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    move(next);
  });

  figure.draw = (width) => {
    scale = scales(spec, places, resumes, width);
    drawing.setAttribute("width", width);
    drawing.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`); // on paper it is as wide as its place there
    hair = svg("line", { class: "hair", y1: MARGIN.top, y2: CHART_HEIGHT - MARGIN.bottom });
    drawing.replaceChildren(
      ...axes(scale, spec, width),
      ...resumes.map((x) => resumeMark(scale, x)),
      ...spec.lines.flatMap((line, index) => drawLine(scale, line, index)),
      hair,
    );
    say();
  };
  const last = spec.lines.map(
    (line) =>
      `${line.label || "value"} from ${formatted(line.points[0][1], spec.format)} to ${formatted(line.points.at(-1)[1], spec.format)}`,
  );
  drawing.setAttribute("aria-label", plain(`${spec.title}, by ${xName}: ${last.join("; ")}. Arrow keys read values.`));
  return figure;
}

function scales(spec, places, resumes, width) {
  const ys = spec.lines.flatMap((line) => line.points.flatMap((point) => point.slice(1)));
  let low = Math.min(0, ...ys); // what cannot be negative is drawn from zero, so that a small change looks small
  let high = Math.max(...ys);
  if (high < 0) [low, high] = [Math.min(...ys), high];
  if (low === high) [low, high] = low === 0 ? [0, 1] : [1.05 * low, 0.95 * high];
  const ticks = niceTicks(low, high);
  [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  const left = Math.min(places[0], ...resumes);
  const right = Math.max(places.at(-1), left + 1, ...resumes);
  const inner = width - MARGIN.left - MARGIN.right;
  const tall = CHART_HEIGHT - MARGIN.top - MARGIN.bottom;
  return {
    ticks,
    xs: [left, right],
    x: (value) => MARGIN.left + (inner * (value - left)) / (right - left),
    y: (value) => MARGIN.top + (tall * (high - value)) / (high - low),
    back: (pixel) => left + ((right - left) * (pixel - MARGIN.left)) / inner,
  };
}

function niceTicks(low, high) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let place = Math.floor(low / step + 1e-9); place <= Math.ceil(high / step - 1e-9); place++) ticks.push(place * step);
  return ticks;
}

function tickText(value, form) {
  if (form === "percent") return `${+(100 * value).toPrecision(3)}${PER_CENT}`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const short = +size.toPrecision(3);
  const text =
    size >= 1e6 || size < 1e-3
      ? short.toExponential().replace("e+", "e").replace("e-", `e${MINUS}`)
      : short.toLocaleString("en", { maximumFractionDigits: 4 });
  return (value < 0 ? MINUS : "") + text;
}

function axes(scale, spec, width) {
  const nodes = [];
  for (const tick of scale.ticks) {
    const y = scale.y(tick);
    nodes.push(svg("line", { class: Math.abs(tick) < 1e-12 ? "zero" : "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    nodes.push(svg("text", { class: "tick", x: MARGIN.left - 6, y: y + 3.5, "text-anchor": "end" }, tickText(tick, spec.format)));
  }
  const [left, right] = [Math.ceil(scale.xs[0]), Math.floor(scale.xs[1])];
  const middle = Math.round((left + right) / 2);
  for (const tick of new Set(
    right - left >= 4 ? [left, middle, right] : Array.from({ length: right - left + 1 }, (_, index) => left + index),
  )) {
    nodes.push(svg("text", { class: "tick", x: scale.x(tick), y: CHART_HEIGHT - 6, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  return nodes;
}

function drawLine(scale, line, index) {
  const style = `line-${index % DASHES.length}`;
  const marks = line.points.flatMap(([x, y, low, high]) => {
    const whisker =
      low === undefined ? [] : [svg("path", { class: `whisker ${style}`, d: `M${scale.x(x)} ${scale.y(low)}V${scale.y(high)}` })];
    return [
      ...whisker,
      svg("circle", { class: `${line.held_out ? "open" : "dot"} ${style}`, cx: scale.x(x), cy: scale.y(y), r: line.held_out ? 4 : 2.5 }),
    ];
  });
  if (line.held_out) return marks;
  const path = line.points.map(([x, y], place) => `${place ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
  const drawn = svg("path", { class: `line ${style}`, d: path, "stroke-dasharray": DASHES[index % DASHES.length] || null });
  return line.points.length <= 40 ? [drawn, ...marks] : [drawn];
}

function resumeMark(scale, x) {
  const place = scale.x(x);
  const mark = svg("g", { class: "resume" }, svg("line", { x1: place, x2: place, y1: MARGIN.top, y2: CHART_HEIGHT - MARGIN.bottom }));
  mark.append(svg("path", { d: `M${place - 4} ${MARGIN.top - 8}h8l-4 7z` }), svg("title", {}, "the run was resumed here"));
  return mark;
}

function lineSample(line, index) {
  const style = `line-${index % DASHES.length}`;
  const sample = svg("svg", { class: "sample", width: 22, height: 10, "aria-hidden": "true" });
  if (line.held_out)
    sample.append(
      svg("path", { class: `whisker ${style}`, d: "M11 0V10" }),
      svg("circle", { class: `open ${style}`, cx: 11, cy: 5, r: 3.5 }),
    );
  else sample.append(svg("path", { class: `line ${style}`, d: "M0 5H22", "stroke-dasharray": DASHES[index % DASHES.length] || null }));
  return sample;
}
