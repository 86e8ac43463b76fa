"""Which session has which cache slot, what every slot holds, and whose beginning can be taken from where.

A slot is known by its tokens: the keys and values of its first `held` tokens are in the cache, whoever put them there. They stay
when a session is closed or gives its slot up, until another session overwrites them. So a session that begins like any other, or
comes back, finds its beginning, and what is retained needs no memory of its own. Beginnings are shared in whole pieces of the length in which
prompts are read, so that every token is read in the same piece with sharing as without: who shared what must not change what is sampled.

A session keeps its slot while slots last. When they are short, sessions that are not being sampled (their actor is at work) give
theirs up, the least recently used first, and read their tokens again later.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from epo_jax.generate.session import Session


@dataclasses.dataclass(eq=False)
class Slot:
    """One row of the caches.

    tokens: int32[max_length], of which the first `known` mean something and the first `held` are cached: the rest is on its way.
    session: who has it; None: it is free. used: grows with every use of any slot.
    """

    index: int
    tokens: np.ndarray
    held: int = 0
    known: int = 0
    session: Session | None = None
    used: int = 0

    def expect(self, tokens: Sequence[int]) -> None:
        """Says which tokens the session has now: all but the last will be held."""
        self.tokens[self.held : len(tokens)] = tokens[self.held :]
        self.known = len(tokens) - 1


class Seats:
    def __init__(self, slots: int, max_length: int, piece: int) -> None:
        """piece: beginnings are shared in multiples of so many tokens."""
        self._piece = piece
        self._tokens = np.zeros((slots, max_length), np.int32)
        self._slots = [Slot(index, tokens) for index, tokens in enumerate(self._tokens)]
        self._clock = itertools.count(1)
        self.evictions = 0

    @property
    def taken(self) -> int:
        """How many slots have a session."""
        return sum(slot.session is not None for slot in self._slots)

    @property
    def longest(self) -> int:
        """The most tokens that any slot holds."""
        return max(slot.held for slot in self._slots)

    def forget(self) -> None:
        """The caches are lost: sessions keep their slots, which hold nothing."""
        for slot in self._slots:
            slot.held = slot.known = 0

    def vacate(self, session: Session) -> None:
        """Frees the session's slot, if it has one; what it holds stays."""
        if session.slot is not None:
            session.slot.session, session.slot.known = None, session.slot.held
            session.slot = None

    def seat(self, session: Session, tokens: Sequence[int], may_go: Callable[[Session], bool]) -> None:
        """Gives the session a free slot for these tokens, else that of the least recently used session that may go, else none."""
        free = [slot for slot in self._slots if slot.session is None]
        if not free:
            least = min((slot for slot in self._slots if may_go(slot.session)), key=lambda slot: slot.used, default=None)
            if least is None:
                return
            self.vacate(least.session)
            self.evictions += 1
            free = [least]
        wanted = np.asarray(tokens[:-1], np.int32)
        shared = self._matches(wanted, [slot.held for slot in self._slots])
        best, second = (*sorted(shared, reverse=True), 0)[:2]
        # A slot that alone holds the beginning is taken over; where others do too, they remain, and the oldest content goes.
        chosen = min(free, key=lambda slot: (not (shared[slot.index] == best > second), slot.used))
        chosen.session, session.slot = session, chosen
        chosen.held = int(shared[chosen.index])
        self.use(chosen)

    def use(self, slot: Slot) -> None:
        slot.used = next(self._clock)

    def beginnings(self, slot: Slot, coming: Iterable[Slot]) -> tuple[Slot, int, int]:
        """How much of this slot's known tokens other slots begin with too: (the slot that holds most of it, how much it holds, how
        much any of the `coming` ones will). Nothing, once the slot holds anything but whole pieces."""
        if slot.held % self._piece:
            return slot, 0, 0
        known = self._matches(slot.tokens[: slot.known], [other.known for other in self._slots], beyond=slot.held)
        held = [0 if other is slot else min(int(shared), other.held) for other, shared in zip(self._slots, known, strict=True)]
        most = int(np.argmax(held))
        return self._slots[most], held[most], max((int(known[other.index]) for other in coming), default=0)

    def _matches(self, wanted: np.ndarray, lengths: Sequence[int], beyond: int = 0) -> np.ndarray:
        """For every slot, how many of its first lengths[slot] tokens are those of `wanted`; 0 where not more than `beyond` are."""
        shared = np.zeros(len(self._slots), np.int64)
        if len(wanted) <= beyond:
            return shared
        lengths = np.asarray(lengths)
        (like,) = np.nonzero((self._tokens[:, beyond] == wanted[beyond]) & (lengths > beyond))  # few are left to compare
        if len(like):
            unlike = self._tokens[like, : len(wanted)] != wanted
            first = np.where(unlike.any(axis=1), unlike.argmax(axis=1), len(wanted))
            shared[like] = np.minimum(first, lengths[like]) // self._piece * self._piece
        shared[shared <= beyond] = 0
        return shared
