"""A conversation that the engine keeps (Session), and one call of generate() until it is answered (Request)."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from epo_jax.errors import UserError
from epo_jax.generate.sampling import Sampled, Sampling

if TYPE_CHECKING:
    from epo_jax.generate.seats import Slot

Listener = Callable[[list[int], list[float]], None]  # told of newly sampled tokens and their log-probabilities


class ContextFull(UserError):
    """The conversation with its new tokens leaves no room for one sampled token; the session is as it was before the call."""


@dataclasses.dataclass(eq=False)
class Session:
    """One conversation: all its tokens so far, and where the engine keeps their keys and values.

    tokens: everything appended and sampled; the truth, from which a lost cache is made again.
    key: uint32[2]; the token at position p is sampled with fold_in(key, p).
    slot: the engine's: where it keeps keys and values, while it does.
    """

    key: np.ndarray
    tokens: list[int] = dataclasses.field(default_factory=list)
    slot: Slot | None = None
    closed: bool = False

    @property
    def cached(self) -> int:
        """How many of its tokens the cache holds."""
        return 0 if self.slot is None else self.slot.held


@dataclasses.dataclass(eq=False)
class Request:
    """One call of generate() until it is answered. The session's own token list changes only when it is."""

    session: Session
    sampling: Sampling
    tokens: list[int]  # the session's, the new ones, and what has been sampled so far
    prompt_length: int
    limit: int  # at most so many sampled tokens
    answer: asyncio.Future[Sampled]
    on_tokens: Listener | None = None
    answered_before: int = 0  # how many calls had been answered when this one came
    logprobs: list[float] = dataclasses.field(default_factory=list)

    @property
    def sampled(self) -> int:
        return len(self.logprobs)

    @property
    def uncached(self) -> int:
        """Tokens the cache does not hold; never none, as the newest is fed only to sample the next."""
        return len(self.tokens) - self.session.cached
