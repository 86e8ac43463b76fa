"""Reads WebShop's original files: `items_shuffle*.json`, `items_ins_v2*.json`, `items_human_ins*.json` in one folder.

The files are read as streams, a record at a time, so that the full set's gigabytes never lie in memory at once. They come from
strangers: nothing in them is evaluated, and whatever is wrong is told in one sentence (UserError).
"""

from __future__ import annotations

import json
import os
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from envs.webshop.products import Product, product_of
from epo_jax.errors import UserError

PRODUCTS, ATTRIBUTES, HUMAN = "items_shuffle", "items_ins_v2", "items_human_ins"
# An attributes file of more bytes than this is looked up on disk.
TABLE_IN_MEMORY = 100_000_000
# A single record longer than this (characters) is taken for damage.
MAX_RECORD = 16_000_000
_CHUNK = 1 << 20
_BLANK = " \t\n\r"


def data_folder(data: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder of the original files: `data`, else WEBSHOP_DATA; UserError where there is none."""
    data = data or os.environ.get("WEBSHOP_DATA")
    if not data:
        raise UserError(
            "WebShop's goals need its files: download items_shuffle*.json, items_ins_v2*.json and items_human_ins*.json, and set WEBSHOP_DATA"
            " to their folder, or use generated:train and generated:eval"
        )
    folder = pathlib.Path(data)
    if not folder.is_dir():
        raise UserError(f"there is no folder {data}: set WEBSHOP_DATA to the folder that holds {PRODUCTS}*.json")
    return folder


def find_file(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    """The file of a kind in a folder; where there are several, the largest set."""
    found = sorted(folder.glob(f"{stem}*.json"))
    return max(found, key=lambda path: path.stat().st_size) if found else None


def products_in(folder: pathlib.Path) -> Iterator[Product]:
    """Every product of a folder once, in the file's order; UserError for files that are missing, damaged or empty."""
    path = find_file(folder, PRODUCTS)
    if path is None:
        raise UserError(f"there is no {PRODUCTS}*.json in {folder}: it holds WebShop's products")
    size = path.name.removeprefix(PRODUCTS).removesuffix(".json")  # "_1000" for the small set, "" for the full one
    attributes_path = folder / f"{ATTRIBUTES}{size}.json"
    attributes = _read_table(attributes_path if attributes_path.is_file() else find_file(folder, ATTRIBUTES))
    human = _read_table(find_file(folder, HUMAN))
    seen: set[str] = set()
    for number, record in enumerate(stream_list(path)):
        try:
            asin = record.get("asin") if isinstance(record, dict) else None
            mined, asked = (attributes.get(asin), human.get(asin)) if isinstance(asin, str) else (None, None)
            product = product_of(record, attributes=mined, human=asked)
        except UserError as error:
            raise UserError(f"product {number} of {path} {error}") from None
        if product is not None and product.asin not in seen:
            seen.add(product.asin)
            yield product
    if not seen:
        raise UserError(f"{path} holds no products")


def _read_table(path: pathlib.Path | None) -> dict[str, Any] | _DiskTable:
    """asin -> entry; empty without a file, since products can be shown without it."""
    if path is None:
        return {}
    return dict(stream_object(path)) if path.stat().st_size <= TABLE_IN_MEMORY else _DiskTable(stream_object(path))


class _DiskTable:
    """Entries by name in a temporary SQLite file, which goes with the object."""

    def __init__(self, entries: Iterator[tuple[str, Any]]) -> None:
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE entries (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        rows = ((name, json.dumps(value)) for name, value in entries)
        self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows)

    def get(self, name: str) -> Any:
        row = self._database.execute("SELECT value FROM entries WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])


def stream_list(path: pathlib.Path) -> Iterator[Any]:
    """The elements of a file that is one JSON list, one after the other."""
    reader = _Reader(path)
    reader.take("[")
    if reader.peek() == "]":
        return
    while True:
        yield reader.value()
        if reader.take(",]") == "]":
            return


def stream_object(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """The (name, value) pairs of a file that is one JSON object, one after the other."""
    reader = _Reader(path)
    reader.take("{")
    if reader.peek() == "}":
        return
    while True:
        name = reader.value()
        reader.take(":")
        yield str(name), reader.value()
        if reader.take(",}") == "}":
            return


class _Reader:
    """Decodes a file's JSON values one by one, holding little more than one of them."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.decoder = json.JSONDecoder()
        self.buffer, self.at, self.count = "", 0, 0
        try:
            self.file = path.open(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._read():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise self._broken()
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        wanted = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError):
                end = -1
            # A number at the very end of what was read may go on.
            if end >= 0 and (end < len(self.buffer) or not self._read()):
                self.at = end
                self.count += 1
                return value
            if end < 0:
                if len(self.buffer) - self.at > MAX_RECORD or not self._read(wanted):
                    raise self._broken()
                wanted *= 2

    def _read(self, size: int = _CHUNK) -> bool:
        try:
            more = self.file.read(size)
        except UnicodeDecodeError:
            raise UserError(f"{self.path} is not UTF-8 text: it is damaged") from None
        self.buffer, self.at = self.buffer[self.at :] + more, 0
        if not more:
            self.file.close()
            self.file = _AtEnd()
        return bool(more)

    def _broken(self) -> UserError:
        return UserError(f"{self.path} breaks off or is no valid JSON after {self.count} values: download it again")


class _AtEnd:
    """A file that has been read."""

    def read(self, size: int) -> str:
        return ""

    def close(self) -> None:
        pass
