// Text to nodes. What models, environments and files say is only ever text: no function here or elsewhere makes markup of it.

// Control, format (direction of writing, zero width), private and unassigned characters, lone surrogates, unusual line ends.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\u2028\u2029]/gu;
const LONG_TEXT = 3000; // characters shown before somebody asks for more

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

const isSeen = (character) => character === "\n" || character === "\t";

// For places that take plain text only (options, titles, labels).
function plain(text) {
  return String(text ?? "").replace(UNSEEN, (character) => (isSeen(character) ? " " : `[${codePoint(character)}]`));
}

// Appends text to a node; each character that cannot be seen becomes a mark that names it.
function appendText(node, text) {
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (isSeen(match[0])) continue;
    node.append(text.slice(end, match.index));
    const mark = document.createElement("span");
    mark.className = "unseen";
    mark.textContent = codePoint(match[0]);
    node.append(mark);
    end = match.index + match[0].length;
  }
  node.append(text.slice(end));
}

// An element. attributes: `class`, `text` and event handlers (on…) besides attributes proper; children: nodes, or texts that may say anything.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes);
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) node.append(child);
    else appendText(node, String(child));
  }
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(node, attributes);
  node.append(...children);
  return node;
}

function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : plain(value));
  }
}

// What somebody said: kept in its own direction of writing, its line ends kept, and of a very long one only the beginning at first.
function said(text, className = "") {
  const node = el("div", { class: `said ${className}` });
  const whole = text ?? "";
  if (whole.length <= LONG_TEXT) {
    appendText(node, whole);
    return node;
  }
  const rest = el("button", { type: "button", class: "more" }, `show all ${whole.length.toLocaleString("en")} characters`);
  rest.addEventListener("click", () => {
    node.replaceChildren();
    appendText(node, whole);
  });
  appendText(node, whole.slice(0, LONG_TEXT));
  node.append(" … ", rest);
  return node;
}
