// Which part of the page is shown, its address, and the keyboard.

const VIEWS = {
  overview: ["Overview", overviewView],
  episodes: ["Episodes", episodesView],
  evaluation: ["Evaluation", evaluationView],
  ...(hasMeetings ? { meetings: ["Self-play", meetingsView] } : {}),
  health: ["Health", healthView],
  provenance: ["Provenance", provenanceView],
  beside: [null, besideView], // reached from an episode
};
const KEYS = [
  ["1 … 6", "the parts of the page"],
  ["/", "search in the episodes"],
  ["↓ ↑", "move in the list"],
  ["Enter", "open the episode"],
  ["j, k", "next and previous episode"],
  ["Esc", "close the episode"],
  ["← →", "read values off a chart that has the focus"],
  ["?", "this list"],
];
const main = document.getElementById("main");
let view = null;
let shownAddress = null;

function address(name, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  return `#${name}${query ? `?${query}` : ""}`;
}

// The address of what is shown already, so that it can be kept, sent, and is there again after a reload. pushed: Back leads to what was before.
function setAddress(name, parameters, pushed = false) {
  shownAddress = address(name, parameters);
  if (location.hash === shownAddress) return;
  if (pushed) history.pushState({ pushed }, "", shownAddress);
  else history.replaceState(history.state, "", shownAddress);
}

function show() {
  if (view && location.hash === shownAddress) return;
  const [name, query] = location.hash.slice(1).split("?");
  if (view?.follow?.(name, new URLSearchParams(query ?? ""))) return;
  shownAddress = location.hash;
  const known = Object.hasOwn(VIEWS, name) ? name : "overview";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${known === "beside" ? "episodes" : known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const moved = view !== null;
  view = VIEWS[known][1](new URLSearchParams(query ?? ""));
  main.replaceChildren(view);
  if (moved) scrollTo(0, 0);
}

function begin() {
  document.title = `${plain(run.run.name)} – epo_jax`;
  const [title, state] = [document.querySelector("#who h1"), document.querySelector("#who p")];
  title.replaceChildren();
  appendText(title, run.run.name);
  appendText(state, run.run.folder);
  const nav = document.querySelector("nav");
  for (const [name, [words]] of Object.entries(VIEWS)) {
    if (!words) continue;
    const link = el("a", { href: address(name) }, words);
    const count = run.health.warnings.length + run.health.unreadable.length;
    if (name === "health" && count) link.append(el("span", { class: "count", title: "warnings" }, String(count)));
    nav.append(link);
  }
  const keys = document.getElementById("keys");
  keys.append(
    el("h2", { id: "keys-title" }, "Keys"),
    el(
      "dl",
      {},
      KEYS.flatMap(([key, words]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, words)]),
    ),
    el("button", { type: "button", onclick: () => keys.close() }, "Close"),
  );
  document.getElementById("skip").addEventListener("click", () => main.focus());
  addEventListener("hashchange", show);
  addEventListener("keydown", onKey);
  show();
  document.documentElement.dataset.ready = "true";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && !document.getElementById("keys").open) {
    if (typing) event.target.blur();
    else view.close?.();
  }
  if (typing) return;
  const links = document.querySelectorAll("nav a");
  if (event.key >= "1" && event.key <= String(links.length)) links[Number(event.key) - 1].click();
  else if (event.key === "/") {
    event.preventDefault();
    if (!document.getElementById("search")) {
      location.hash = "episodes";
      show();
    }
    document.getElementById("search").focus();
  } else if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "j") view.step?.(1);
  else if (event.key === "k") view.step?.(-1);
}

begin();
