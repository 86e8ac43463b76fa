"""The full set's catalogue on disk: products in SQLite, the search index in mapped arrays, so that memory stays small.

It is built once, as a stream over the original files, into WEBSHOP_INDEX or a folder beside them, and built again when those files
change. A `StoredCatalogue` answers as `Catalogue` does.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import json
import os
import pathlib
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from envs.webshop import loader, nouns, search
from envs.webshop.goals import KINDS, goals_of
from envs.webshop.products import Goal, Instruction, Product
from epo_jax.errors import UserError

FORMAT = 1
FOLDER = "epo_jax_index"
_DATABASE, _META = "products.sqlite", "meta.json"
# Documents whose postings are held in memory at once.
_BLOCK = 20_000


def open_store(data: pathlib.Path, find_nouns: nouns.Nouns, seed: int) -> StoredCatalogue:
    """The stored catalogue of the original files in `data`, built first where there is none or they have changed."""
    folder = pathlib.Path(os.environ.get("WEBSHOP_INDEX") or data / FOLDER)
    wanted = _description(data, seed)
    try:
        found = json.loads((folder / _META).read_text())
    except (OSError, ValueError):
        found = None
    if found != wanted:
        build(loader.products_in(data), folder, seed, wanted)
    return StoredCatalogue(folder, find_nouns)


def _description(data: pathlib.Path, seed: int) -> dict:
    files = sorted(path for stem in (loader.PRODUCTS, loader.ATTRIBUTES, loader.HUMAN) for path in data.glob(f"{stem}*.json"))
    return {"format": FORMAT, "seed": seed, "files": [[path.name, path.stat().st_size, int(path.stat().st_mtime)] for path in files]}


# --- building -----------------------------------------------------------------------------------


def build(products: Iterable[Product], folder: pathlib.Path, seed: int, description: dict) -> None:
    """Writes a store; it appears under its name only when it is complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the search index cannot be written to {folder} ({error.strerror}): set WEBSHOP_INDEX to a folder of your own") from None
    try:
        rng = random.Random(seed)
        database = sqlite3.connect(unfinished / _DATABASE)
        database.execute("CREATE TABLE products (number INTEGER PRIMARY KEY, asin TEXT UNIQUE, price REAL, goals INTEGER, record TEXT)")
        writer = _IndexWriter(unfinished)
        for number, product in enumerate(products):
            price = rng.uniform(*product.prices) if len(product.prices) == 2 else product.prices[0]
            kinds = bool(product.instruction) + 2 * bool(product.human)
            row = (number, product.asin, price, kinds, json.dumps(dataclasses.astuple(product)))
            database.execute("INSERT INTO products VALUES (?, ?, ?, ?, ?)", row)
            writer.add(search.document(product))
        writer.finish(database)
        # Price limits are drawn where the prices' draws ended.
        database.execute("CREATE TABLE state (value TEXT)")
        database.execute("INSERT INTO state VALUES (?)", (json.dumps(rng.getstate()),))
        database.execute("CREATE INDEX with_goals ON products (goals) WHERE goals > 0")
        database.commit()
        database.close()
        (unfinished / _META).write_text(json.dumps(description))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _IndexWriter:
    """Collects postings document by document, a block at a time to disk, and sorts them by word at the end."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.words: dict[str, int] = {}
        self.lengths = array.array("l")
        self.blocks: list[int] = []  # postings in each block
        self._clear()

    def _clear(self) -> None:
        self.of_word, self.documents, self.frequencies = array.array("i"), array.array("i"), array.array("i")

    def add(self, text: str) -> None:
        counts = Counter(search.analyse(text))
        for word, count in counts.items():
            self.of_word.append(self.words.setdefault(word, len(self.words)))
            self.documents.append(len(self.lengths))
            self.frequencies.append(count)
        self.lengths.append(sum(counts.values()))
        if len(self.lengths) % _BLOCK == 0:
            self._flush()

    def _flush(self) -> None:
        with (self.folder / "postings").open("ab") as file:
            for values in (self.of_word, self.documents, self.frequencies):
                values.tofile(file)
        self.blocks.append(len(self.of_word))
        self._clear()

    def _read_blocks(self) -> Iterator[np.ndarray]:
        """[3, postings] of each block: words, documents, frequencies."""
        with (self.folder / "postings").open("rb") as file:
            for size in self.blocks:
                yield np.fromfile(file, dtype=np.int32, count=3 * size).reshape(3, size)

    def finish(self, database: sqlite3.Connection) -> None:
        if not self.lengths:
            raise UserError("a catalogue without products: nothing can be searched or bought")
        self._flush()
        per_word = np.zeros(len(self.words), dtype=np.int64)
        for of_word, _, _ in self._read_blocks():
            per_word += np.bincount(of_word, minlength=len(self.words))
        starts = np.concatenate(([0], np.cumsum(per_word)))
        np.save(self.folder / "starts.npy", starts)
        weights, norms = search.word_weights(per_word, len(self.lengths)), search.length_norms(self.lengths)
        shape = (int(starts[-1]),)
        documents = np.lib.format.open_memmap(self.folder / "documents.npy", mode="w+", dtype=np.int32, shape=shape)
        scores = np.lib.format.open_memmap(self.folder / "scores.npy", mode="w+", dtype=np.float32, shape=shape)
        cursor = starts[:-1].copy()
        for of_word, of_document, frequencies in self._read_blocks():
            order = np.argsort(of_word, kind="stable")
            sorted_words = of_word[order]
            here, first, counts = np.unique(sorted_words, return_index=True, return_counts=True)
            places = np.arange(len(order)) - np.repeat(first, counts) + cursor[sorted_words]
            documents[places] = of_document[order]
            scores[places] = weights[sorted_words] * search.saturation(frequencies[order].astype(np.float64), norms[of_document[order]])
            cursor[here] += counts
        documents.flush()
        scores.flush()
        (self.folder / "postings").unlink()
        database.execute("CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        database.executemany("INSERT INTO words VALUES (?, ?)", self.words.items())


# --- reading ------------------------------------------------------------------------------------


class _Column:
    """A table's column as a mapping from its key; what was asked for lately stays in memory."""

    def __init__(self, database: sqlite3.Connection, statement: str) -> None:
        self._ask = functools.lru_cache(maxsize=65_536)(lambda key: database.execute(statement, (key,)).fetchone())

    def __getitem__(self, key: str):
        row = self._ask(key)
        if row is None:
            raise KeyError(key)
        return row[0]

    def get(self, key: str):
        row = self._ask(key)
        return None if row is None else row[0]


class StoredCatalogue:
    """A catalogue whose products and index lie on disk; see `Catalogue` for what it answers."""

    def __init__(self, folder: pathlib.Path, find_nouns: nouns.Nouns) -> None:
        self._database = sqlite3.connect(f"file:{folder / _DATABASE}?mode=ro", uri=True, check_same_thread=False)
        self.nouns = functools.lru_cache(maxsize=65_536)(find_nouns)
        self.prices = _Column(self._database, "SELECT price FROM products WHERE asin = ?")
        self._records = _Column(self._database, "SELECT record FROM products WHERE asin = ?")
        self._asins = _Column(self._database, "SELECT asin FROM products WHERE number = ?")
        starts, documents, scores = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "documents", "scores"))
        (size,) = self._database.execute("SELECT COUNT(*) FROM products").fetchone()
        words = _Column(self._database, "SELECT number FROM words WHERE word = ?")
        self._index = search.Index(words, starts, documents, scores, size)
        self.product = functools.lru_cache(maxsize=16_384)(self._product)
        self.search = functools.lru_cache(maxsize=4_096)(self._search)
        self._goals: dict[str, list[Goal]] = {}

    def _product(self, asin: str) -> Product:
        return _decode(self._records[asin])

    def _search(self, text: str) -> tuple[str, ...]:
        return tuple(self._asins[number] for number in self._index.search(text))

    def goals(self, kind: str) -> Sequence[Goal]:
        """All goals of a kind, in the original's order.

        They are held in memory: that suits the full set's 12,087 human goals, and not its synthetic ones, of which there are millions.
        """
        if kind not in KINDS:
            raise UserError(f"there are no goals {kind!r}: use one of {', '.join(KINDS)}")
        if kind not in self._goals:
            (state,) = self._database.execute("SELECT value FROM state").fetchone()
            version, numbers, gauss = json.loads(state)
            rng = random.Random()
            rng.setstate((version, tuple(numbers), gauss))
            flag = 1 + KINDS.index(kind)
            rows = self._database.execute("SELECT record FROM products WHERE goals > 0 AND goals & ? ORDER BY number", (flag,))
            self._goals[kind] = goals_of(kind, (_decode(record) for (record,) in rows), self.prices, rng)
        return self._goals[kind]


def _decode(record: str) -> Product:
    fields = dict(zip(Product.__slots__, json.loads(record), strict=True))
    for name in ("bullets", "prices", "attributes", "instruction_attributes"):
        fields[name] = tuple(fields[name])
    fields["options"] = {name: tuple(values) for name, values in fields["options"].items()}
    fields["human"] = tuple(Instruction(text, tuple(attributes), tuple(options)) for text, attributes, options in fields["human"])
    return Product(**fields)
