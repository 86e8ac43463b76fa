"""Actors (LLM_d): who turns a strategy into an action. An actor is frozen; it never learns.

`literal` is here; `openai` (a model behind an API) and `local` (a model in this process) are language models and keep a conversation an
episode (exchange.py), each in its own file. `epo_jax/partners.py` makes the one that a run names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from epo_jax.rollout import literal

_MOVES = re.compile(r"(?P<moves>\d{1,4}) moves\.|There are (?P<turns>\d{1,4}) turns in all")


class ActorSession(Protocol):
    """An actor in one episode, which may remember what it saw and did.

    counts: what the player adds to the trajectory's `extra` at the end, such as how many answers could not be read (exchange.py).
    """

    counts: dict[str, int]

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """The action for this turn, as text that may be anything.

        observation: what the environment said last (at first, the task); strategy: the strategist's words; admissible: the commands that do
        something now. `ContextFull` ends the episode as a strategist's full context does; `UserError` (a spent budget, a wrong key) stops the run;
        any other exception means that the actor failed for good: the episode is then masked, not scored.
        """
        ...

    def close(self) -> None:
        """The episode is over."""
        ...


class Actor(Protocol):
    """Anything that acts, in many episodes at once.

    needs_strategy: whether it only carries out what a strategist says; one that does not can act alone (alone.py).
    money: what it has cost since it was made, in the currency of its prices; 0 for what runs on this machine.
    """

    name: str
    needs_strategy: bool
    money: float

    def begin(self, environment: str, seed: int) -> ActorSession:
        """The actor in a new episode of this environment; what it samples depends on the seed."""
        ...


class LiteralActor:
    """The embedded actor: carries out the admissible command that the strategy's words name best (`literal.choose`). It remembers nothing."""

    name = "literal"
    needs_strategy = True
    money = 0.0
    counts: dict[str, int] = {}

    def begin(self, environment: str, seed: int) -> LiteralActor:
        return self

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        return literal.choose(strategy, list(admissible))

    def close(self) -> None:
        pass

    def without_strategist(self, mode: str) -> Actor:
        """In a conversation: no words at all, at which the party moves as it sees fit, or ("react") a rule of thumb's."""
        return Wordless() if mode == "none" else RuleOfThumb()


class Wordless(LiteralActor):
    """Has nothing to say to its party."""

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        return ""


class RuleOfThumb(LiteralActor):
    """Advises itself by what everybody knows of bargaining: give way slowly, and take what there is when the last move comes."""

    def begin(self, environment: str, seed: int) -> _Bargaining:
        return _Bargaining()


class _Bargaining:
    """One conversation. How many moves there are is told in the context; where it is not, the last one is never known."""

    def __init__(self) -> None:
        self._moves: int | None = None
        self.counts: dict[str, int] = {}

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        if self._moves is None:
            told = _MOVES.search(observation)
            self._moves = int(told["moves"] or (int(told["turns"]) + 1) // 2) if told else 0
        self._moves -= 1
        return "accept their offer" if self._moves == 0 else "concede slowly"

    def close(self) -> None:
        pass
