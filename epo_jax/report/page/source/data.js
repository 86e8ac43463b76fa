// The data of the page: compressed blocks, the first with everything but conversations, each of the others with a few conversations.

const blockElements = document.querySelectorAll("script.block");
const recentBlocks = new Map(); // number → promise; the last few, since neighbours are opened one after the other
const RECENT_BLOCKS = 8;

function readBlock(number) {
  const known = recentBlocks.get(number);
  if (known) return known;
  const found = decodeBlock(blockElements[number].textContent);
  recentBlocks.set(number, found);
  if (recentBlocks.size > RECENT_BLOCKS) recentBlocks.delete(recentBlocks.keys().next().value);
  return found;
}

async function decodeBlock(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

const run = await readBlock(0);
recentBlocks.clear();

// One object an episode, with the names of run.episodes.columns, its file and its place in it. `id` is what an address holds.
const episodes = run.episodes.files.flatMap((file, number) =>
  file.rows.map((row, place) => {
    const episode = { file, place, id: `${number}.${place}`, searched: null };
    run.episodes.columns.forEach((name, column) => (episode[name] = row[column]));
    return episode;
  }),
);
const episodeById = new Map(episodes.map((episode) => [episode.id, episode]));
const specialTokens = new Set(run.episodes.special);

// The number of the block with an episode's conversation, or null where the page does not hold it.
function blockOf(episode) {
  const place = episode.file.kept.indexOf(Math.floor(episode.place / run.episodes.block));
  return place < 0 ? null : episode.file.first_block + place;
}

async function conversationOf(episode) {
  const number = blockOf(episode);
  return number === null ? null : (await readBlock(number))[episode.place % run.episodes.block];
}

// The tokens of a turn as [{text, special}], or null where only the text is known.
function piecesOf(turn) {
  if (!Array.isArray(turn.said)) return null;
  return turn.said.map((token) =>
    typeof token === "string" ? { text: token, special: false } : { text: run.episodes.tokens[token], special: specialTokens.has(token) },
  );
}

function strategyOf(turn) {
  const pieces = piecesOf(turn);
  return pieces
    ? pieces
        .filter((piece) => !piece.special)
        .map((piece) => piece.text)
        .join("")
        .trim()
    : (turn.said ?? "");
}

// Everything that is said in an episode, in lower case, for the search. Texts are read once.
async function searchedText(episode) {
  if (episode.searched === null) {
    const conversation = await conversationOf(episode);
    const parts = [episode.task, episode.masked ?? ""];
    if (conversation) {
      parts.push(conversation.first ?? "", conversation.judge?.reasoning ?? "", ...(conversation.judge?.reasons ?? []));
      for (const turn of conversation.turns)
        parts.push(strategyOf(turn), turn.action ?? "", turn.seen ?? "", turn.instead ? strategyOf(turn.instead) : "");
    }
    episode.searched = parts.join("\n").toLowerCase();
  }
  return episode.searched;
}

function phaseName(file) {
  if (file.phase === "round") return `round ${file.round}${file.demonstrated ? ", expert, demonstrations" : ""}`;
  if (file.phase === "inspection") return `cycle ${file.round}, inspected`;
  if (file.phase === "states") return `cycle ${file.round}, rewarded`;
  return file.round === 0 ? "held out, before" : `held out, after ${file.round}`;
}
