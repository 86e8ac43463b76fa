// A page that is served by `python -m epo_jax.report --watch`: loads itself again when a round or an evaluation is complete, though not under a
// person's hands. Its address keeps what is shown; the tint, and where it was scrolled, are kept in the browser's tab.

const KEPT = `epo_jax ${run.run.folder}`;
const PLACES = ".list, .opened, .beside, .scroll, .plot, details, .switch input"; // what can be scrolled, opened or have the focus
const FIELDS = "select, textarea, input:not([type=radio], [type=checkbox])";
const notice = el("p", { id: "newer", role: "status" });
let restored = false; // until then the places on the page are not those of its reader

function busy() {
  if (document.activeElement?.matches(FIELDS)) return true;
  if (document.querySelector("dialog[open]") || !getSelection().isCollapsed) return true;
  const reading = document.querySelector(".episode, .beside") !== null;
  return reading && (scrollY > 0 || [...document.querySelectorAll(".opened, .beside")].some((node) => node.scrollTop > 0));
}

function keep() {
  if (!restored) return;
  const places = [...document.querySelectorAll(PLACES)];
  const now = {
    tint,
    address: location.hash,
    page: scrollY,
    focus: places.indexOf(document.activeElement),
    places: places.map((node) => [node.scrollLeft, node.scrollTop, Boolean(node.open)]),
  };
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(now));
  } catch {
    // a browser that keeps nothing: the page then begins at its top
  }
}

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

async function restore(before) {
  await view.drawn;
  if (before.address === location.hash) await restorePlaces(before);
  restored = true;
}

async function restorePlaces({ page, focus, places }) {
  const frame = () => new Promise((resume) => requestAnimationFrame(resume));
  const found = [...document.querySelectorAll(PLACES)];
  found.forEach((node, index) => {
    if (node.matches("details") && places[index]?.[2]) node.open = true; // what it holds is drawn a moment later
  });
  await frame();
  await frame();
  found.forEach((node, index) => node.scrollTo(...(places[index]?.slice(0, 2) ?? [0, 0])));
  found[focus]?.focus({ preventScroll: true });
  scrollTo(0, page);
}

function loadNewer() {
  location.reload();
}

setInterval(async () => {
  const answer = await fetch("version").catch(() => null);
  if (!answer?.ok || (await answer.text()) === WATCHED_VERSION) return;
  if (!busy()) loadNewer();
  else if (!notice.firstChild) notice.append("newer data", el("button", { type: "button", onclick: loadNewer }, "load it ", el("kbd", {}, "r")));
}, 3000);

addEventListener("pagehide", keep);
addEventListener("keydown", (event) => {
  if (event.key !== "r" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches(FIELDS)) return;
  loadNewer();
});
if (Object.hasOwn(TINTS, kept().tint)) tint = kept().tint;
queueMicrotask(() => {
  document.body.append(notice); // when all of the program has run
  document.querySelector("#keys dl").append(el("dt", {}, el("kbd", {}, "r")), el("dd", {}, "load what is newer"));
  restore(kept());
});
