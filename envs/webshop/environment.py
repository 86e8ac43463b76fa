"""WebShop as an environment: goals by split, shopping trips, progress and an expert's next move.

Splits `synthetic` and `human` are all goals of a kind over the original files, in the folder that WEBSHOP_DATA names, numbered as
the original numbers them. `test` is goals 0–199 and `train` goals 1,500–3,323 (as many as published runs use; numbers below 1,500
are the original's test and development goals): human goals where the full human file is there, else synthetic ones. Published runs
list other numbers, and lists differ: a `train_indices.json` or `test_indices.json` in the folder is used instead where there is one.
Splits `generated:train` and `generated:eval` are a shop that the project makes itself; no product is sought in both.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from envs.speaker import MIXED, PRECISE
from envs.webshop import brief, generator, loader, phrases
from envs.webshop.catalogue import PRICE_SEED, Catalogue, open_folder
from envs.webshop.engine import ShopEngine
from envs.webshop.expert import expert_action
from envs.webshop.goals import FULL_HUMAN, KINDS, TEST_NUMBERS, TRAIN_NUMBERS
from envs.webshop.products import Goal
from envs.webshop.store import StoredCatalogue
from epo_jax.errors import UserError

REAL_SPLITS = ("train", "test", *KINDS)
GENERATED_SPLITS = generator.SPLITS
SPLITS = REAL_SPLITS + GENERATED_SPLITS
TRIP_OVER = "The trip is over: something was bought, and no action changes that any more."


@dataclasses.dataclass(frozen=True)
class WebshopTask:
    """One goal. id: "human/17", "synthetic/17", "generated:train/17"; kind: what stands before the slash; number: after it."""

    kind: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.number}"


class WebshopEnvironment:
    """Shopping trips. The reward comes with the purchase, which ends the trip; there is no step limit here.

    data: the folder of the original files; None takes WEBSHOP_DATA. nouns: see nouns.choose (real goals only).
    seed: draws prices within ranges, and the price limits of goals. pages: "full" as the original's; "brief" for small models (brief.py);
    "auto": brief in the project's own shop.
    """

    def __init__(self, data: str | os.PathLike | None = None, nouns: str = "auto", seed: int = PRICE_SEED, pages: str = "auto") -> None:
        if pages not in ("full", "brief", "auto"):
            raise UserError(f"there are no pages {pages!r}: use full, brief or auto")
        self._data = data
        self._nouns = nouns
        self._seed = seed
        self._pages = pages
        self.engine: ShopEngine | None = None
        self.task: WebshopTask | None = None

    # --- which goals there are ----------------------------------------------------------------

    def tasks(self, split: str) -> list[WebshopTask]:
        """The goals of a split in a fixed order."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}: use one of {', '.join(SPLITS)}")
        if split in ("train", "test"):
            return self._published(split)
        return [WebshopTask(split, number) for number in range(len(self._goals(split)))]

    def default_splits(self) -> tuple[str, str]:
        """Real goals where WEBSHOP_DATA is set, else the project's own shop."""
        return ("train", "test") if self._data or os.environ.get("WEBSHOP_DATA") else GENERATED_SPLITS

    def find_task(self, identifier: str, split: str | None = None) -> WebshopTask:
        """The goal with this id; with a split, a number in the split's order will do too."""
        kind, slash, number = identifier.rpartition("/")
        if not re.fullmatch(r"[0-9]{1,9}", number):
            raise UserError(f"a goal is a number, as in synthetic/17; this is {identifier!r}")
        if split is not None and not slash:
            tasks = self.tasks(split)
            if int(number) >= len(tasks):
                raise UserError(f"{split} has {len(tasks)} goals, numbered from 0: there is no {number}")
            return tasks[int(number)]
        if kind in ("train", "test"):
            return self.find_task(number, kind)
        if kind not in KINDS + GENERATED_SPLITS:
            raise UserError(f"the task id {identifier!r} does not start with a split: {', '.join(SPLITS)}")
        task = WebshopTask(kind, int(number))
        if split is not None and task not in self.tasks(split):
            raise UserError(f"there is no {identifier!r} in {split}")
        self._goal(task)
        return task

    def task_of_file(self, path: str) -> WebshopTask:
        """WebShop's goals do not come as files."""
        raise UserError(f"WebShop has no game files: name a goal by its number, not {path!r}")

    def _published(self, split: str) -> list[WebshopTask]:
        kind = "human" if len(self._goals("human")) >= FULL_HUMAN else "synthetic"
        count = len(self._goals(kind))
        listed = loader.data_folder(self._data) / f"{split}_indices.json"
        if listed.is_file():
            return [WebshopTask(kind, number) for number in _numbers(listed, count)]
        return [WebshopTask(kind, number) for number in (TRAIN_NUMBERS if split == "train" else TEST_NUMBERS) if number < count]

    def _catalogue(self, kind: str) -> Catalogue | StoredCatalogue:
        if kind in GENERATED_SPLITS:
            return generator.catalogue()
        return open_folder(loader.data_folder(self._data), self._nouns, self._seed)

    def _goals(self, kind: str) -> Sequence[Goal]:
        return generator.goals(kind) if kind in GENERATED_SPLITS else self._catalogue(kind).goals(kind)

    def _goal(self, task: WebshopTask) -> Goal:
        goals = self._goals(task.kind)
        if task.number >= len(goals):
            raise UserError(f"{task.kind} has {len(goals)} goals, numbered from 0: there is no {task.number}")
        return goals[task.number]

    # --- an episode ---------------------------------------------------------------------------

    def reset(self, task: WebshopTask | str) -> str:
        """Starts a trip; returns the first page, with the instruction."""
        if isinstance(task, str):
            task = self.find_task(task)
        self.engine = ShopEngine(self._catalogue(task.kind), self._goal(task))
        self.task = task
        return self.engine.reset()

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """observation, reward, done, {"success", "bought", "admissible"}. Success is a reward of 1; any purchase is `bought`."""
        engine = self._shopping()
        if engine.done:
            return TRIP_OVER, 0.0, True, self._info()
        before = engine.visit
        observation = engine.step(action)
        if self._pages == "brief" or (self._pages == "auto" and self.task.kind in GENERATED_SPLITS):
            observation = brief.shorten(before, engine.visit, observation, engine.reward)
        return observation, engine.reward, engine.done, self._info()

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, "bought": self.bought, "admissible": self.admissible}

    @property
    def admissible(self) -> list[str]:
        """What does something on this page, in the page's order; "search[<query>]" stands for every query."""
        return self._shopping().admissible_commands()

    def progress(self) -> float:
        """How far the trip has come, in [0, 1] (ShopEngine.progress): 1 exactly at the end of one with reward 1."""
        return self._shopping().progress()

    def expert_action(self) -> str:
        """What somebody who knows the goal's product does next; "look" when the trip is over."""
        return expert_action(self._shopping())

    def demonstration(
        self, seed: int, *, max_turns: int, actor: Callable[[str, Sequence[str]], str] | None
    ) -> list[tuple[str, str, str]]:
        """The present trip from its start as a shopper who sees only the pages advises it: (strategy, action, observation) of each turn.

        The shopper words its strategies in mixed styles, `actor(strategy, admissible)` acts on the words, and the shopper goes on
        from what really happened. Without an actor it acts itself, and words every decision precisely.
        """
        self._shopping()
        weights = PRECISE if actor is None else MIXED
        return phrases.demonstrate(self, self.task, seed, weights, max_turns=max_turns, actor=actor)

    @property
    def task_id(self) -> str:
        """The id of the present goal."""
        self._shopping()
        return self.task.id

    @property
    def task_type(self) -> None:
        """Goals are of one kind."""
        return None

    @property
    def success(self) -> bool:
        """Whether the purchase was worth the full reward of 1."""
        engine = self._shopping()
        return engine.done and engine.reward == 1.0

    @property
    def outcome(self) -> float:
        """The reward of the purchase; 0 where nothing was bought."""
        return float(self._shopping().reward)

    @property
    def bought(self) -> bool:
        """Whether anything was bought: what the original counts as success."""
        return self._shopping().done

    def _shopping(self) -> ShopEngine:
        if self.engine is None:
            raise RuntimeError("reset an environment before anything else")
        return self.engine


def _numbers(path: pathlib.Path, count: int) -> list[int]:
    """The goals' numbers in a file that is a JSON list of them."""
    numbers = list(loader.stream_list(path))
    if not all(isinstance(number, int) and 0 <= number < count for number in numbers):
        raise UserError(f"{path} must list numbers of goals below {count}")
    return numbers
