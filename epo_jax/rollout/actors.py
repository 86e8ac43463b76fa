"""Actors (LLM_d): who turns a strategy into an action. An actor is frozen; it never learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from epo_jax.errors import UserError
from epo_jax.rollout import literal


class Actor(Protocol):
    """Anything that acts. `act` may be called for many episodes at once.

    needs_strategy: whether it only carries out what a strategist says; one that does not can act alone (alone.py).
    money: what it has cost since it was made, in the currency of its prices; 0 for what runs on this machine.
    """

    name: str
    needs_strategy: bool
    money: float

    async def act(self, messages: Sequence[dict[str, str]], *, strategy: str, admissible: Sequence[str]) -> str:
        """The action, given the conversation so far, the strategist's last words, and the commands the environment takes.

        Raises any exception if it fails for good: the episode is then masked, not scored.
        """
        ...


class LiteralActor:
    """The embedded actor: carries out the admissible command that the strategy's words name best (`literal.choose`)."""

    name = "literal"
    needs_strategy = True
    money = 0.0

    async def act(self, messages: Sequence[dict[str, str]], *, strategy: str, admissible: Sequence[str]) -> str:
        return literal.choose(strategy, list(admissible))


ACTORS = {"literal": LiteralActor}


def make(name: str) -> Actor:
    """The actor of that name; an unknown name raises `UserError`."""
    if name not in ACTORS:
        raise UserError(f"unknown actor {name!r}: known are {', '.join(sorted(ACTORS))}.")
    return ACTORS[name]()
