"""SOTOPIA as an environment of two seats: tasks by split, turns, private views, and scores where a rule gives them.

Splits `all`, `hard`, `train` and `dev` are SOTOPIA's own combinations (loader.py), in the folder that SOTOPIA_DATA names; they need an evaluator.
`generated:train` and `generated:eval` are bargaining games made by the project, of which a rule scores the outcome; no game is in both.
`generated:scenarios` is one of each of the project's scenarios, with those that are only talk.

Whoever moves a seat (a model, a person, a scripted negotiator) asks for `turn`, reads `view(seat)`, and plays `step(seat, action)`. One seat alone,
against a scripted partner, is seat.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from envs.sotopia import generator, loader
from envs.sotopia.action import ACTION_TYPES, Action
from envs.sotopia.engine import Conversation
from envs.sotopia.negotiator import Negotiator
from envs.sotopia.scenario import SEATS, Combination, View
from epo_jax.errors import UserError

REAL = "sotopia"  # how the ids of SOTOPIA's own combinations begin, whatever split they are listed in
SPLITS = (*loader.SPLITS, *generator.SPLITS)
CONVERSATION_OVER = "The conversation is over: nothing that is said changes it any more."


@dataclasses.dataclass(frozen=True)
class SotopiaTask:
    """One combination. kind: "sotopia" or a generated split; name: its combo_id, or its number there."""

    kind: str
    name: str

    @property
    def id(self) -> str:
        """ "sotopia/01H7…", "generated:train/17"."""
        return f"{self.kind}/{self.name}"


class SotopiaEnvironment:
    """Conversations between two seats, one at a time; deterministic given the actions.

    data: the folder of SOTOPIA's files; None takes SOTOPIA_DATA. generated: how many games `tasks` lists for each generated split.
    """

    def __init__(self, data: str | os.PathLike | None = None, generated: dict[str, int] | None = None) -> None:
        self._data = data
        self._generated = {generator.TRAIN: 10_000, generator.EVALUATION: 500} | (generated or {})
        self.conversation: Conversation | None = None
        self.task: SotopiaTask | None = None

    # --- which combinations there are ---------------------------------------------------------

    def tasks(self, split: str) -> list[SotopiaTask]:
        """The combinations of a split in a fixed order; UserError names the known splits, or says what is missing."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}: use one of {', '.join(SPLITS)}")
        if split in loader.SPLITS:
            return [SotopiaTask(REAL, combination.id) for combination in loader.combinations(self._data, split)]
        count = len(generator.scenarios()) if split == generator.SCENARIOS else self._generated[split]
        return [SotopiaTask(split, str(number)) for number in range(count)]

    def default_splits(self) -> tuple[str, str]:
        """Games made by the project to train on, and to evaluate on `all` where SOTOPIA_DATA is set, else more games."""
        return (generator.TRAIN, "all" if self._data or os.environ.get("SOTOPIA_DATA") else generator.EVALUATION)

    def find_task(self, identifier: str, split: str | None = None) -> SotopiaTask:
        """The combination with this id; with a split, a number in the split's order, or a combo_id, will do too."""
        kind, slash, name = identifier.rpartition("/")
        if split is not None and not slash:
            if re.fullmatch(r"[0-9]{1,9}", name):
                tasks = self.tasks(split)
                if split in (generator.TRAIN, generator.EVALUATION):
                    return self._checked(SotopiaTask(split, str(int(name))))
                if int(name) >= len(tasks):
                    raise UserError(f"{split} has {len(tasks)} combinations, numbered from 0: there is no {name}")
                return tasks[int(name)]
            kind = REAL if split in loader.SPLITS else split
        if kind in loader.SPLITS:
            return self.find_task(name, kind)
        if kind not in (REAL, *generator.SPLITS):
            raise UserError(f"the task id {identifier!r} does not start with a split: {', '.join((REAL, *SPLITS))}")
        task = self._checked(SotopiaTask(kind, name))
        if split is not None and task.kind != split and task not in self.tasks(split):
            raise UserError(f"there is no {identifier!r} in {split}")
        return task

    def task_of_file(self, path: str) -> SotopiaTask:
        """SOTOPIA's combinations do not come as single files."""
        raise UserError(f"SOTOPIA has no game files: name a combination by its id, not {path!r}")

    def _checked(self, task: SotopiaTask) -> SotopiaTask:
        self.combination(task)
        return task

    def combination(self, task: SotopiaTask) -> Combination:
        """The scenario and the characters of a task, both private sides and all. UserError if there is none."""
        if task.kind == REAL:
            return loader.combination(self._data, task.name)
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", task.name):
            raise UserError(f"a task of {task.kind} is a number, as in {task.kind}/17; this is {task.id!r}")
        number, count = int(task.name), len(generator.scenarios()) if task.kind == generator.SCENARIOS else generator.MAX_NUMBER
        if number >= count:
            raise UserError(f"tasks of {task.kind} are numbered below {count}: there is no {number}")
        return generator.scenarios()[number] if task.kind == generator.SCENARIOS else generator.generate(task.kind, number)

    # --- an episode ---------------------------------------------------------------------------

    def reset(self, task: SotopiaTask | str) -> dict[int, str]:
        """Starts a conversation; returns the context that each seat reads."""
        if isinstance(task, str):
            task = self.find_task(task)
        self.conversation = Conversation(self.combination(task))
        self.task = task
        return {seat: self.view(seat).opening() for seat in SEATS}

    def step(self, seat: int, action: Action | str) -> tuple[dict[int, str], bool, dict[str, Any]]:
        """A seat's move: what each seat reads of it, whether the conversation is over, and {"end", "deal"}.

        action: as JSON, too. ValueError says in a sentence what is wrong with it, or that it is not the seat's turn; then nothing was played,
        and who plays the seat may mend it once and then play Action("none").
        """
        conversation = self._talking()
        conversation.act(seat, action if isinstance(action, Action) else Action.parse(action))
        line = conversation.view(seat).line(len(conversation.history) - 1)
        done = conversation.end is not None
        return {seat: line for seat in SEATS}, done, {"end": conversation.end, "deal": conversation.deal}

    @property
    def turn(self) -> int | None:
        """The seat whose move it is; None when the conversation is over."""
        return self._talking().turn

    @property
    def done(self) -> bool:
        return self.turn is None

    @property
    def admissible(self) -> list[str]:
        """The action types of the seat whose turn it is; empty when the conversation is over."""
        return [] if self.done else list(ACTION_TYPES)

    def view(self, seat: int) -> View:
        """What a seat knows now."""
        return self._talking().view(seat)

    def transcript(self) -> str:
        """The whole conversation with both private sides: for an evaluator or judge, never for a seat."""
        return self._talking().transcript()

    def negotiator(self, seat: int, *, tempered: bool) -> Negotiator:
        """A scripted negotiator for a seat: with its character's temper (a partner), or the plain one that waits for advice."""
        combination = self._talking().combination
        return Negotiator(combination.tempers[seat] if tempered else "plain", combination.seed + seat)

    # --- scores -------------------------------------------------------------------------------

    @property
    def scoring(self) -> str:
        """How the present scenario is scored: "exact" (a game's rule), "proxy" (what was talked about), "evaluator" (no rule)."""
        scenario = self._talking().combination.scenario
        return "exact" if scenario.game else "proxy" if scenario.topics else "evaluator"

    def goal(self, seat: int) -> float | None:
        """A seat's goal score as it stands, in [0, 10]; None where it needs an evaluator."""
        conversation = self._talking()
        scenario = conversation.combination.scenario
        if scenario.game:
            return scenario.game.goal(seat, conversation.deal)
        return scenario.topics.goal(seat, conversation.history) if scenario.topics else None

    def outcome(self, seat: int) -> float | None:
        """goal / 10, in [0, 1]; None where it needs an evaluator."""
        goal = self.goal(seat)
        return None if goal is None else goal / 10

    def progress(self, seat: int) -> float:
        """How well a seat stands, in [0, 1]: its outcome if it accepted what the other offers now, and at the end its outcome.

        Without a game: the proxy's score so far, or 0 where no rule says.
        """
        conversation = self._talking()
        game = conversation.combination.scenario.game
        if game and conversation.end is None:
            return game.share(seat, conversation.ledger.standing[1 - seat])
        return self.outcome(seat) or 0.0

    @property
    def task_id(self) -> str:
        """The id of the present combination."""
        self._talking()
        return self.task.id

    def _talking(self) -> Conversation:
        if self.conversation is None:
            raise RuntimeError("reset an environment before anything else")
        return self.conversation
