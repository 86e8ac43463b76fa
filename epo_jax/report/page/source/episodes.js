// The browser of episodes: filters, a list that draws only the rows in sight, and the chosen episode beside it.

const ROW_HEIGHT = 54; // pixels, as in page.css
const ROWS_BEYOND = 6; // drawn above and below what is in sight

const PHASES = [
  ["round", "all training rounds"],
  ["evaluation", "all held-out"],
  ["inspection", "all inspected"],
  ["states", "all rewarded"],
];
const RESULTS = { all: "any result", success: "success", failure: "no success", masked: "masked" };
const ORDERS = { played: "in order of play", worst: "lowest reward first", best: "highest reward first", longest: "most turns first" };

function episodesView(parameters) {
  const view = el("div", { class: "view episodes-view" });
  const state = Object.fromEntries(
    ["environment", "phase", "result", "low", "high", "text", "order", "open"].map((name) => [name, parameters.get(name) ?? ""]),
  );
  const count = el("p", { class: "note", role: "status" });
  const list = el("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "Episodes" });
  const spacer = el("div", { class: "spacer" });
  const opened = el("div", { class: "opened" });
  list.append(spacer);
  let found = [];
  let chosen = -1;
  let search = 0;
  let closing = false; // on the way back to the list, perhaps with other filters than the episode was opened with
  let place = [0, 0]; // how far the list and the page were scrolled when an episode covered the list

  const change = (name) => (event) => {
    state[name] = event.target.value;
    remember();
    filter();
  };
  const environments = [...new Set(episodes.map((episode) => episode.environment))].sort();
  const phases = run.episodes.files.map((file, index) => [String(index), `${phaseName(file)} (${file.rows.length})`]);
  const filters = el(
    "form",
    { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    choice(
      "Environment",
      [["", "all environments"], ...environments.map((name) => [name, name])],
      state.environment,
      change("environment"),
    ),
    choice(
      "Round",
      [["", "all rounds"], ...PHASES.filter(([phase]) => run.episodes.files.some((file) => file.phase === phase)), ...phases],
      state.phase,
      change("phase"),
    ),
    choice("Result", Object.entries(RESULTS), state.result || "all", change("result")),
    number("Reward from", state.low, change("low")),
    number("to", state.high, change("high")),
    choice("Order", Object.entries(ORDERS), state.order || "played", change("order")),
    el(
      "label",
      { class: "wide" },
      el("span", {}, "Text"),
      el("input", { type: "search", id: "search", value: state.text, placeholder: "in anything that was said", oninput: change("text") }),
    ),
  );

  async function filter() {
    const mine = ++search;
    let wanted = episodes.filter((episode) => matches(episode, state));
    if (state.text.trim()) wanted = await withText(wanted, state.text.trim().toLowerCase(), () => mine !== search, count);
    if (mine !== search) return;
    found = sorted(wanted, state.order);
    const held = episodes.filter((episode) => blockOf(episode) !== null).length;
    const missing =
      held < episodes.length
        ? ` The conversations of ${formatted(episodes.length - held, "count")} are not in the page, which would be too large.`
        : "";
    count.textContent = `${formatted(found.length, "count")} of ${formatted(episodes.length, "count")} episodes.${missing}`;
    chosen = found.findIndex((episode) => episode.id === state.open);
    spacer.style.height = `${found.length * ROW_HEIGHT}px`;
    if (chosen >= 0) reveal();
    else list.scrollTop = 0;
    drawRows();
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND);
    const rows = [];
    for (let index = first; index < last; index++)
      rows.push(episodeRow(found[index], index, found.length, index === chosen, () => choose(index, true)));
    spacer.replaceChildren(...rows);
    if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `row-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function reveal() {
    const top = chosen * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  }

  async function choose(index, opens) {
    if (!found.length) return;
    chosen = Math.max(0, Math.min(found.length - 1, index));
    reveal();
    drawRows();
    if (opens) await open(found[chosen], !state.open);
  }

  // pushed: opened from the list alone, to which Back returns.
  async function open(episode, pushed) {
    if (!view.classList.contains("has-open")) place = [list.scrollTop, scrollY];
    state.open = episode.id;
    remember(pushed);
    const article = await episodeArticle(episode);
    if (state.open !== episode.id) return; // another one was opened meanwhile
    opened.replaceChildren(el("button", { type: "button", class: "back", onclick: close }, "← all episodes"), article);
    opened.scrollTop = 0;
    view.classList.add("has-open");
    if (getComputedStyle(list).display === "none") scrollTo(0, 0);
  }

  function close() {
    const covered = getComputedStyle(list).display === "none";
    state.open = "";
    view.classList.remove("has-open");
    opened.replaceChildren(hint());
    if (covered) {
      list.scrollTop = place[0];
      scrollTo(0, place[1]);
      if (chosen >= 0) reveal();
    }
    drawRows();
    list.focus({ preventScroll: true });
    closing = Boolean(history.state?.pushed);
    if (closing) history.back();
    else remember();
  }

  function told(values) {
    return Object.fromEntries(Object.entries(values).filter(([name, value]) => value && value !== { result: "all", order: "played" }[name]));
  }

  function remember(pushed = false) {
    setAddress("episodes", told(state), pushed);
  }

  // Back and Forward between the list and an episode: true where the view could stay as it is.
  view.follow = (name, parameters) => {
    const id = parameters.get("open") ?? "";
    if (name !== "episodes" || (id && !episodeById.has(id))) return false;
    if (closing && !id) {
      closing = false;
      remember();
    } else if (address(name, told({ ...state, open: id })) !== location.hash) return false;
    else if (id) {
      chosen = found.findIndex((episode) => episode.id === id);
      open(episodeById.get(id), false);
      drawRows();
    } else close();
    return true;
  };

  list.addEventListener("scroll", drawRows, { passive: true });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
    const next = {
      ArrowDown: chosen + 1,
      ArrowUp: chosen - 1,
      PageDown: chosen + page,
      PageUp: chosen - page,
      Home: 0,
      End: found.length - 1,
    }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      choose(next, view.classList.contains("has-open"));
    } else if ((event.key === "Enter" || event.key === " ") && chosen >= 0) {
      event.preventDefault();
      choose(chosen, true);
    }
  });
  view.step = (by) => choose(chosen + by, true);
  view.close = () => view.classList.contains("has-open") && close();

  view.append(el("h2", { class: "hidden" }, "Episodes"), filters, count, el("div", { class: "panes" }, list, opened));
  opened.append(hint());
  if (!episodes.length)
    opened.replaceChildren(
      el(
        "p",
        { class: "note" },
        run.origin.data ? `This run learned from recorded conversations: ${run.origin.data}.` : "No episode has ended yet.",
      ),
    );
  new ResizeObserver(drawRows).observe(list);
  view.drawn = new Promise(requestAnimationFrame).then(async () => {
    await filter();
    const episode = episodeById.get(state.open);
    if (episode) await open(episode, false);
  });
  return view;
}

function matches(episode, state) {
  if (state.environment && episode.environment !== state.environment) return false;
  if (PHASES.some(([phase]) => phase === state.phase)) {
    if (episode.file.phase !== state.phase) return false;
  } else if (state.phase && episode.file !== run.episodes.files[Number(state.phase)]) return false;
  if (state.result === "masked" && episode.masked === null) return false;
  if (
    (state.result === "success" || state.result === "failure") &&
    (episode.masked !== null || episode.success !== Number(state.result === "success"))
  )
    return false;
  if (state.low === "" && state.high === "") return true;
  const [low, high] = [state.low, state.high].map((text, end) => (text === "" ? [-Infinity, Infinity][end] : Number(text)));
  return episode.reward !== null && low <= episode.reward && episode.reward <= high;
}

// Those of `wanted` that say `text`. Reading all conversations takes a moment: it is told, and given up when `stale()`.
async function withText(wanted, text, stale, count) {
  const kept = [];
  for (const [index, episode] of wanted.entries()) {
    if (episode.searched === null && index % run.episodes.block === 0) {
      count.textContent = `Searching… ${formatted(index, "count")} of ${formatted(wanted.length, "count")} episodes`;
      await new Promise((resume) => setTimeout(resume)); // lets the page answer the keyboard
      if (stale()) return kept;
    }
    if ((await searchedText(episode)).includes(text)) kept.push(episode);
  }
  return kept;
}

function sorted(wanted, order) {
  if (order === "worst") return [...wanted].sort((a, b) => a.reward - b.reward);
  if (order === "best") return [...wanted].sort((a, b) => b.reward - a.reward);
  if (order === "longest") return [...wanted].sort((a, b) => b.turns - a.turns);
  return wanted;
}

function episodeRow(episode, index, total, isChosen, onclick) {
  const words = [episode.environment, phaseName(episode.file), episode.success === null ? "one state" : `${episode.turns} turns`];
  if (episode.seat !== "agent") words.push(`seat ${episode.seat}`);
  if (episode.partner) words.push(`met ${partnerName(episode.partner)}`);
  if (episode.masked !== null) words.push("masked");
  const row = el(
    "div",
    {
      class: "row",
      role: "option",
      id: `row-${index}`,
      "aria-selected": String(isChosen),
      "aria-setsize": total,
      "aria-posinset": index + 1,
      onclick,
    },
    resultMark(episode),
    el("span", { class: "task" }, episode.task),
    el("span", { class: "reward" }, formatted(episode.reward, "fixed")),
    el("span", { class: "about" }, words.join(" · ")),
  );
  row.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
  return row;
}

function choice(label, options, value, onchange) {
  const select = el(
    "select",
    { onchange },
    options.map(([key, words]) => el("option", { value: key, selected: key === value }, plain(words))),
  );
  return el("label", {}, el("span", {}, label), select);
}

function number(label, value, oninput) {
  return el(
    "label",
    { class: "narrow" },
    el("span", {}, label),
    el("input", { type: "number", min: 0, max: 1, step: 0.05, value, oninput }),
  );
}

function hint() {
  return el(
    "p",
    { class: "note" },
    "Choose an episode to read it. ",
    el("kbd", {}, "↓"),
    " ",
    el("kbd", {}, "↑"),
    " move, ",
    el("kbd", {}, "Enter"),
    " opens, ",
    el("kbd", {}, "/"),
    " searches, ",
    el("kbd", {}, "?"),
    " tells more.",
  );
}
