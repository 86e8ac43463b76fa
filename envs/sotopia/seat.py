"""One seat of SOTOPIA as an environment like the others: somebody advises this seat, a scripted partner plays the other.

`step` takes one of two things. An action as JSON, `{"action_type": …, "argument": …}`, as a model that acts would give it; what begins like JSON and
cannot be read is the action `none`, and the observation begins with the sentence that says why. Anything else is words: the seat's own plain
negotiator (negotiator.py) hears them as advice and makes the move. So the embedded actor has nothing to choose: `admissible` lists `envs.ANYTHING`,
at which it passes the strategist's words on, but for their label (epo_jax/rollout/literal.py), and which words make a good move is what the
strategist learns.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import envs
from envs.sotopia import brief, generator, phrases
from envs.sotopia.action import NONE, Action
from envs.sotopia.environment import CONVERSATION_OVER, SotopiaEnvironment, SotopiaTask
from envs.sotopia.expert import decide
from envs.sotopia.scenario import SEATS, View
from epo_jax.errors import UserError

WON = 5.0  # the goal score from which a conversation counts as a success: half of all that there was to gain


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
        if text not in ("full", "brief", "auto"):
            raise UserError(f"there is no text {text!r}: use full, brief or auto")
        self.environment = SotopiaEnvironment(data, generated)
        self._seats = SEATS if seat == "both" else (seat,)
        self._text = text
        self.task: SeatTask | None = None

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

    def reset(self, task: SeatTask | str) -> str:
        """Starts a conversation; returns the seat's context, with the partner's first move where it has it."""
        if isinstance(task, str):
            task = self.find_task(task)
        self.task = task
        self.environment.reset(task.combination)
        self._own = self.environment.negotiator(task.seat, tempered=False)
        self._partner = self.environment.negotiator(1 - task.seat, tempered=True)
        self._partner_moves()
        view = self.view()
        return "\n".join([brief.opening(view) if self._brief else f"{view.opening()}\nAgent1 is {view.name}.", *self._lines(0)])

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """observation (what both did), reward, done, {"success", "admissible", "end"}; "fault" where JSON could not be read."""
        if self.done:
            return CONVERSATION_OVER, 0.0, True, self._info()
        before, fault = self.view().turn, None
        if action.lstrip().startswith(("{", "```")):
            try:
                move = Action.parse(action)
            except ValueError as error:
                move, fault = Action(NONE), f"That was no action: {error}."
        else:
            move = self._own.choose(action, self.view())
        self.environment.step(self.task.seat, move)
        self._partner_moves()
        lines = [*([fault] if fault else []), *self._lines(before)]
        if self.done and not self._brief:
            goal = self.environment.goal(self.task.seat)
            lines.append("The conversation is over." if goal is None else f"The conversation is over. Your goal score: {goal:.1f} of 10.")
        reward = (self.outcome or 0.0) if self.done else 0.0
        return "\n".join(lines), reward, self.done, self._info() | ({"fault": fault} if fault else {})

    def _partner_moves(self) -> None:
        seat = 1 - self.task.seat
        while self.environment.turn == seat:
            self.environment.step(seat, self._partner.choose(None, self.environment.view(seat)))

    def _lines(self, since: int) -> list[str]:
        view = self.view()
        return [brief.line(view, number) if self._brief else view.line(number) for number in range(since, view.turn)]

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "admissible": self.admissible, "end": self.environment.conversation.end}

    @property
    def _brief(self) -> bool:
        return self._text != "full" and self.view().side is not None

    def view(self) -> View:
        """What the seat knows now."""
        return self.environment.view(self._playing().seat)

    @property
    def done(self) -> bool:
        self._playing()
        return self.environment.done

    @property
    def admissible(self) -> list[str]:
        """[envs.ANYTHING] while it lasts: any words, or a JSON action."""
        return [] if self.done else [envs.ANYTHING]

    def progress(self) -> float:
        """How well the seat stands, in [0, 1] (SotopiaEnvironment.progress)."""
        return self.environment.progress(self._playing().seat)

    def expert_action(self) -> str:
        """What the expert, who sees only this seat's view, would advise now, in precise words; "look" when the conversation is over."""
        return "look" if self.done else phrases.phrase(decide(self.view()), "exact", random.Random(0))

    def demonstration(
        self, seed: int, *, max_turns: int, actor: Callable[[str, Sequence[str]], str]
    ) -> list[tuple[str, str, str]]:
        """The present conversation from its start as the expert advises it: (strategy, action, observation) of each turn.

        The expert words its strategies in mixed styles, `actor(strategy, admissible)` acts on the words, and the expert goes on from what
        really happened.
        """
        return phrases.demonstrate(self, self._playing(), seed, max_turns=max_turns, actor=actor)

    # --- scores -------------------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """The id of the present task."""
        return self._playing().id

    @property
    def task_type(self) -> None:
        """SOTOPIA's scenarios have no kinds that all sources name."""

    @property
    def success(self) -> bool:
        """Whether the conversation is over with a goal score of WON or more. Never where it needs an evaluator."""
        goal = self.environment.goal(self._playing().seat)
        return self.done and goal is not None and goal >= WON

    @property
    def outcome(self) -> float | None:
        """The seat's goal / 10; None where it needs an evaluator."""
        return self.environment.outcome(self._playing().seat)

    def _playing(self) -> SeatTask:
        if self.task is None:
            raise RuntimeError("reset an environment before anything else")
        return self.task
