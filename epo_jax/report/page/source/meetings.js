// Self-play: which strategist met which, in which seat, and how it went.

const hasMeetings = episodes.some((episode) => episode.partner);

function partnerName([strategist, weights, actor]) {
  const who = [...new Set([strategist, weights].filter(Boolean))].join(" ") || "nobody that is named"; // weights of a round are called as it is
  return actor ? `${who} (actor ${actor})` : who;
}

const compared = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function meetingsView() {
  const groups = new Map();
  for (const episode of episodes) {
    if (!episode.partner) continue;
    const key = JSON.stringify([episode.environment, phaseName(episode.file), episode.seat, episode.weights, partnerName(episode.partner)]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(episode);
  }
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  const order = ([, [one]]) => [run.episodes.files.indexOf(one.file), one.environment, one.seat];
  const inOrder = [...groups].sort(
    (a, b) =>
      order(a)
        .map((value, index) => compared(value, order(b)[index]))
        .find(Boolean) ?? 0,
  );
  const rows = inOrder.map(([key, group]) => {
    const scored = group.filter((episode) => episode.masked === null);
    const figures = [group.length, group.length - scored.length].map((value) => formatted(value, "count"));
    return [
      ...JSON.parse(key),
      ...figures,
      formatted(mean(scored.map((episode) => episode.reward)), "fixed"),
      formatted(mean(scored.map((episode) => episode.success)), "percent"),
    ];
  });
  const columns = ["environment", "played in", "seat", "its weights", "met"].map((title) => ({ title, left: true }));
  return el(
    "div",
    { class: "view" },
    el("h2", {}, "Self-play"),
    el("p", { class: "note" }, "One line for every seat: who sat there, whom it met, and what the seat earned."),
    table([...columns, { title: "episodes" }, { title: "masked" }, { title: "mean reward" }, { title: "success" }], rows, "Who met whom"),
  );
}
