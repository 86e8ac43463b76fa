"""SOTOPIA as environments like the others: somebody advises one party (party.py), and a scripted partner plays the other; or both are advised.

The embedded actor has nothing to choose: `admissible` lists `envs.ANYTHING`, at which it passes the strategist's words on, but for their label
(epo_jax/rollout/literal.py), and which words make a good move is what the strategist learns.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from envs.sotopia import generator, phrases
from envs.sotopia.environment import CONVERSATION_OVER, SotopiaEnvironment, SotopiaTask
from envs.sotopia.expert import decide
from envs.sotopia.party import TEXTS, WON, Party
from envs.sotopia.scenario import SEATS, View
from envs.speaker import MIXED, PRECISE
from epo_jax.errors import UserError

__all__ = ["WON", "SeatTask", "SotopiaSeat"]


@dataclasses.dataclass(frozen=True)
class SeatTask:
    """A seat of a combination. id: the combination's, and "/0" or "/1"."""

    combination: SotopiaTask
    seat: int

    @property
    def id(self) -> str:
        return f"{self.combination.id}/{self.seat}"


class SotopiaSeat:
    """Conversations seen from one seat; the partner has its character's temper. The reward comes at the end, and is goal / 10 where a rule scores it.

    data, generated: as of SotopiaEnvironment. seat: 0 or 1, or "both": which seats `tasks` lists. text: "full" as SOTOPIA tells it, "brief" for
    small models (brief.py; games only), "auto": brief in games.
    """

    def __init__(
        self, data: str | os.PathLike | None = None, generated: dict[str, int] | None = None, seat: int | str = "both", text: str = "auto"
    ) -> None:
        if seat not in (0, 1, "both"):
            raise UserError(f"there is no seat {seat!r}: use 0, 1 or both")
        if text not in TEXTS:
            raise UserError(f"there is no text {text!r}: use one of {', '.join(TEXTS)}")
        self.environment = SotopiaEnvironment(data, generated)
        self._seats = SEATS if seat == "both" else (seat,)
        self._text = text
        self.task: SeatTask | None = None
        self._party: Party | None = None

    # --- which games there are ----------------------------------------------------------------

    def tasks(self, split: str) -> list[SeatTask]:
        """Every combination of a split from each of the seats."""
        return [SeatTask(combination, seat) for combination in self.environment.tasks(split) for seat in self._seats]

    def default_splits(self) -> tuple[str, str]:
        """Games made by the project: of these a rule scores the outcome."""
        return (generator.TRAIN, generator.EVALUATION)

    def find_task(self, identifier: str, split: str | None = None) -> SeatTask:
        """The task with this id; a combination's id alone is its first listed seat, and with a split the rest of the id is enough."""
        if split is not None:
            identifier = identifier.removeprefix(f"{split}/")
        combination, _, seat = identifier.rpartition("/")
        if combination and seat in ("0", "1") and (split is not None or "/" in combination):
            return SeatTask(self.environment.find_task(combination, split), int(seat))
        return SeatTask(self.environment.find_task(identifier, split), self._seats[0])

    def task_of_file(self, path: str) -> SeatTask:
        """SOTOPIA's combinations do not come as single files."""
        return SeatTask(self.environment.task_of_file(path), self._seats[0])

    # --- an episode ---------------------------------------------------------------------------

    def parties(self, task: SeatTask | str) -> tuple[Party, Party]:
        """Starts a conversation in which both parties are moved from outside, the first of them first; `step` is not for it."""
        self.task = self.find_task(task) if isinstance(task, str) else task
        self.environment.reset(self.task.combination)
        return (Party(self.environment, 0, self._text), Party(self.environment, 1, self._text))

    def reset(self, task: SeatTask | str) -> str:
        """Starts a conversation; returns the seat's context, with the partner's first move where it has it."""
        parties = self.parties(task)
        self._party, self._partner = parties[self.task.seat], parties[1 - self.task.seat]
        self._partner_moves()
        return self._party.read()

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """observation (what both did), reward, done, {"success", "admissible", "end"}; "fault" where JSON could not be read."""
        party = self._playing()
        if party.done:
            return CONVERSATION_OVER, 0.0, True, party.info()
        party.move(action)
        fault = party.fault
        self._partner_moves()
        reward = (party.outcome or 0.0) if party.done else 0.0
        return party.read(), reward, party.done, party.info() | ({"fault": fault} if fault else {})

    def _partner_moves(self) -> None:
        while self._partner.to_move:
            self._partner.move_as_partner()

    def view(self) -> View:
        """What the seat knows now."""
        return self._playing().view()

    @property
    def done(self) -> bool:
        return self._playing().done

    @property
    def admissible(self) -> list[str]:
        """[envs.ANYTHING] while it lasts: any words, or a JSON action."""
        return self._playing().admissible

    def progress(self) -> float:
        """How well the seat stands, in [0, 1] (SotopiaEnvironment.progress)."""
        return self._playing().progress()

    def expert_action(self) -> str:
        """What the expert, who sees only this seat's view, would advise now, in precise words; "look" when the conversation is over."""
        return "look" if self.done else phrases.phrase(decide(self.view()), "exact", random.Random(0))

    def demonstration(
        self, seed: int, *, max_turns: int, actor: Callable[[str, Sequence[str]], str] | None
    ) -> list[tuple[str, str, str]]:
        """The present conversation from its start as the expert advises it: (strategy, action, observation) of each turn.

        The expert words its strategies in mixed styles, `actor(strategy, admissible)` acts on the words, and the expert goes on from what
        really happened. Without an actor its words, always precise, are the action.
        """
        self._playing()
        weights = PRECISE if actor is None else MIXED
        return phrases.demonstrate(self, self.task, seed, weights, max_turns=max_turns, actor=actor)

    # --- scores -------------------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """The id of the present task."""
        return self._playing().task_id

    @property
    def task_type(self) -> None:
        """SOTOPIA's scenarios have no kinds that all sources name."""

    @property
    def success(self) -> bool:
        """Whether the conversation is over with a goal score of WON or more. Never where it needs an evaluator."""
        return self._playing().success

    @property
    def outcome(self) -> float | None:
        """The seat's goal / 10; None where it needs an evaluator."""
        return self._playing().outcome

    def _playing(self) -> Party:
        if self._party is None:
            raise RuntimeError("reset an environment before anything else")
        return self._party
