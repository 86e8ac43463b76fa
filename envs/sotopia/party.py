"""One of the two parties of a conversation: what it reads, how what an actor gives becomes its move, and what it has reached.

A move is given in one of two ways. An action as JSON, `{"action_type": …, "argument": …}`, as a model that acts would give it; what begins like
JSON and cannot be read is the action `none`, and what the party reads next begins with the sentence that says why. Anything else is words: the
party's own plain negotiator (negotiator.py) hears them as advice and makes the move; without words it moves as it sees fit.
"""

from __future__ import annotations

import envs
from envs.sotopia import brief
from envs.sotopia.action import NONE, Action
from envs.sotopia.environment import SotopiaEnvironment
from envs.sotopia.scenario import View

TEXTS = ("full", "brief", "auto")
WON = 5.0  # the goal score from which a conversation counts as a success: half of all that there was to gain


class Party:
    """A seat of the present conversation of `environment`, which the other party shares.

    text: "full" as SOTOPIA tells it, "brief" for small models (brief.py; games only), "auto": brief in games.
    """

    def __init__(self, environment: SotopiaEnvironment, seat: int, text: str) -> None:
        self._environment = environment
        self.seat = seat
        self._own = environment.negotiator(seat, tempered=False)
        self._partner = environment.negotiator(seat, tempered=True)
        self._brief = text != "full" and self.view().side is not None
        self._read: int | None = None  # turns that it was told of; None before it read anything
        self._fault: str | None = None

    # --- what it reads ------------------------------------------------------------------------

    def view(self) -> View:
        """What the party knows now."""
        return self._environment.view(self.seat)

    def read(self) -> str:
        """Everything since the last time: first the context, then what both did, and at the end how it went."""
        view, lines = self.view(), []
        if self._read is None:
            lines += [brief.opening(view)] if self._brief else [view.opening(), f"Agent1 is {view.name}."]
        if self._fault is not None:
            lines.append(self._fault)
        lines += [brief.line(view, number) if self._brief else view.line(number) for number in range(self._read or 0, view.turn)]
        if self.done and not self._brief:
            goal = self._environment.goal(self.seat)
            lines.append("The conversation is over." if goal is None else f"The conversation is over. Your goal score: {goal:.1f} of 10.")
        self._read, self._fault = view.turn, None
        return "\n".join(lines)

    @property
    def fault(self) -> str | None:
        """The sentence that says what was wrong with the last move's JSON, until it is read."""
        return self._fault

    # --- what it does -------------------------------------------------------------------------

    @property
    def to_move(self) -> bool:
        """Whether it is this party's turn."""
        return self._environment.turn == self.seat

    @property
    def admissible(self) -> list[str]:
        """[envs.ANYTHING] while the conversation lasts: any words, or a JSON action."""
        return [] if self.done else [envs.ANYTHING]

    def move(self, action: str) -> None:
        """Plays its turn, with an action as JSON or with words for its own negotiator."""
        if action.lstrip().startswith(("{", "```")):
            try:
                move = Action.parse(action)
            except ValueError as error:
                move, self._fault = Action(NONE), f"That was no action: {error}."
        else:
            move = self._own.choose(action, self.view())
        self._environment.step(self.seat, move)

    def move_as_partner(self) -> None:
        """Plays its turn by the scripted partner, which has the character's temper."""
        self._environment.step(self.seat, self._partner.choose(None, self.view()))

    # --- what it has reached ------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the conversation is over."""
        return self._environment.done

    @property
    def end(self) -> str | None:
        """Why the conversation is over: "leave", "stale", "agreement", "max_turns" or, while it lasts, None."""
        return self._environment.conversation.end

    @property
    def task_id(self) -> str:
        """The combination's id, and "/0" or "/1"."""
        return f"{self._environment.task_id}/{self.seat}"

    @property
    def scenario(self) -> str:
        """The id of the scenario, which several combinations share."""
        return self._environment.conversation.combination.scenario.id

    @property
    def codename(self) -> str:
        """The scenario's name for people, which several scenarios may share."""
        return self._environment.conversation.combination.scenario.codename

    def progress(self) -> float:
        """How well the party stands, in [0, 1] (SotopiaEnvironment.progress)."""
        return self._environment.progress(self.seat)

    @property
    def outcome(self) -> float | None:
        """Its goal / 10; None where it needs an evaluator."""
        return self._environment.outcome(self.seat)

    @property
    def success(self) -> bool:
        """Whether the conversation is over with a goal score of WON or more. Never where it needs an evaluator."""
        goal = self._environment.goal(self.seat)
        return self.done and goal is not None and goal >= WON

    def info(self) -> dict[str, object]:
        """What `step` of an environment tells besides."""
        return {"success": self.success, "admissible": self.admissible, "end": self.end}
