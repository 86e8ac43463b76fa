"""What one call of a program holds: which requests in which rows, as host arrays of a few fixed shapes.

Every size is rounded up to one of a few buckets, so that the programs are compiled for few shapes only.
Shapes: R rows, S new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from epo_jax.generate import cache as kv
from epo_jax.generate.programs import Settings
from epo_jax.generate.session import Request

SMALLEST_LENGTH = 32  # the smallest bucket of new tokens
SMALLEST_CAPACITY = 256  # the smallest bucket of cache entries
PREFILL_TOKENS = {"cpu": 1024}  # places of one prefill batch, beyond which it only outgrows the processor's caches


class PrefillBatch(NamedTuple):
    """The next piece of some requests' tokens; places[i] is the row of request i."""

    requests: list[Request]
    places: list[int]
    rows: np.ndarray | None  # int32[R]: the slot of each row; None: row r is slot r
    tokens: np.ndarray  # int32[R,S]
    start: np.ndarray  # int32[R]: the position of the first
    count: np.ndarray  # int32[R]: how many of S; 0 in padding rows
    attended: int
    reach: int  # all positions that are written lie below


class DecodeBatch(NamedTuple):
    """Requests whose tokens are cached but for the last; places[i] is the row of request i."""

    requests: list[Request]
    places: list[int]
    rows: np.ndarray | None
    tokens: np.ndarray  # int32[R]: the last one
    positions: np.ndarray  # int32[R]: its position; -1 in padding rows
    remaining: np.ndarray  # int32[R]: how many the row may still sample
    settings: Settings
    attended: int
    reach: int


class Shapes:
    """The buckets of one engine, and the batches made in them.

    exact: the shapes in which a request's tokens are read and sampled follow from the request alone, never from its company. The same program
    over the same shapes gives a row the same bits in whatever place and beside whatever others; another shape may add in another order. So
    decoding always runs over all slots and the whole capacity, and a prompt's piece over one number of rows and an attended length of its own.
    """

    def __init__(
        self, *, slots: int, max_length: int, prefill_chunk: int, decode_chunk: int, pad_id: int, mesh: Mesh | None, exact: bool = False
    ) -> None:
        self.slots = slots
        self._exact = exact
        self.prefill_chunk = min(prefill_chunk, max_length)
        self.decode_chunk = decode_chunk
        self._pad_id = pad_id
        self.prefill_tokens = PREFILL_TOKENS.get(jax.default_backend(), 8192)
        self._length_sizes = kv.doubling(SMALLEST_LENGTH, self.prefill_chunk)
        self._attended_sizes = kv.doubling(SMALLEST_CAPACITY, max_length)
        self._capacity_sizes = (max_length,) if exact else self._attended_sizes
        # Rows that lie on other devices are not worth gathering: there, every program runs over all slots.
        self._divided = kv.row_parts(mesh) > 1
        self._row_sizes = (slots,) if exact or self._divided else tuple(sorted({slots, -(-slots // 4)}))

    def capacity(self, length: int) -> int:
        """The bucket of cache entries that holds `length`."""
        return kv.bucket(length, self._capacity_sizes)

    def prefill_batch(self, requests: Sequence[Request]) -> PrefillBatch:
        """The next piece of the first request, and of others whose piece is of like length (if exact, after a like length of cached
        tokens): of all tokens that are not cached but the very last, which decode feeds."""
        shapes = [self._piece(request) for request in requests]
        length, _ = shapes[0]
        sizes = self._prefill_row_sizes(length)
        alike = [request for request, other in zip(requests, shapes, strict=True) if other == shapes[0]]
        requests = alike[: _rows_that_fill(len(alike), sizes)]
        rows, places, number = self._place(requests, sizes)
        tokens = np.full((number, length), self._pad_id, np.int32)
        start, count = np.zeros(number, np.int32), np.zeros(number, np.int32)
        for place, request in zip(places, requests, strict=True):
            piece = request.tokens[request.session.cached : -1][:length]
            tokens[place, : len(piece)] = piece
            start[place], count[place] = request.session.cached, len(piece)
        attended = kv.bucket(int(start.max()), self._attended_sizes)
        return PrefillBatch(requests, places, rows, tokens, start, count, attended, int((start + count).max()))

    def decode_batch(self, requests: list[Request]) -> DecodeBatch:
        rows, places, number = self._place(requests, self._row_sizes)
        tokens, remaining = np.full(number, self._pad_id, np.int32), np.zeros(number, np.int32)
        positions = np.full(number, -1, np.int32)
        settings = Settings(np.zeros((number, 2), np.uint32), np.zeros(number, np.float32), np.zeros(number, np.int32), np.ones(number, np.float32))
        reach = 0
        for place, request in zip(places, requests, strict=True):
            tokens[place], positions[place] = request.tokens[-1], request.session.cached
            remaining[place] = request.limit - request.sampled
            reach = max(reach, request.session.cached + min(int(remaining[place]), self.decode_chunk))
            settings.keys[place] = request.session.key
            settings.temperature[place] = request.sampling.temperature
            settings.top_k[place] = request.sampling.top_k
            settings.top_p[place] = request.sampling.top_p
        return DecodeBatch(requests, places, rows, tokens, positions, remaining, settings, self.capacity(reach), reach)

    def _piece(self, request: Request) -> tuple[int, int]:
        """The bucket of a request's next piece, and, if exact, that of the tokens before it."""
        length = kv.bucket(min(request.uncached - 1, self.prefill_chunk), self._length_sizes)
        return length, kv.bucket(request.session.cached, self._attended_sizes) if self._exact else 0

    def _prefill_row_sizes(self, length: int) -> tuple[int, ...]:
        """The row buckets of one length: at most prefill_tokens places, or a quarter of that."""
        if self._divided:
            return self._row_sizes
        full = max(1, min(self.slots, self.prefill_tokens // length))
        quarter = -(-full // 4)
        return (quarter,) if self._exact else tuple(sorted({quarter, full}))

    def _place(self, requests: list[Request], sizes: Sequence[int]) -> tuple[np.ndarray | None, list[int], int]:
        """(rows: the slot of each row of the batch, or None when row r is slot r; each request's row; number of rows)."""
        slots = [request.session.slot.index for request in requests]
        number = kv.bucket(len(slots), sizes)
        if number == self.slots:
            return None, slots, number
        rows = np.full(number, self.slots, np.int32)  # padding: outside the slots, never written
        rows[: len(slots)] = slots
        return rows, list(range(len(slots))), number


def _rows_that_fill(number: int, sizes: Sequence[int]) -> int:
    """How many of `number` requests make a batch that fills a row bucket: of 9 and buckets (2, 8, 32) it is 8, not 9 of 32."""
    fitting = [size for size in sizes if size <= number]
    if not fitting or (number <= sizes[-1] and kv.bucket(number, sizes) <= math.ceil(number * 4 / 3)):
        return number
    return fitting[-1]
