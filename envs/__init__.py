"""Environments: rules, texts and loaders of the games that agents play. Pure Python: no JAX, no model.

`make(name)` gives one by name. To add one, write a class with the methods of `Environment` and name it in the registry here; where a model that
acts should answer in JSON, name its `ActionFormat` too.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from epo_jax.errors import UserError

# name -> "module:class", imported when asked for
REGISTRY = {
    "alfworld": "envs.alfworld.environment:AlfworldEnvironment",
    "webshop": "envs.webshop.environment:WebshopEnvironment",
    "sotopia": "envs.sotopia.seat:SotopiaSeat",
}

# Environments whose episodes are conversations of two parties: they have `parties(task)`, one for each seat (envs/sotopia/party.py).
TWO_SEATS = ("sotopia",)

# name -> "module:ActionFormat" of environments whose actions are JSON; elsewhere an action is a line of text.
ACTION_FORMATS = {"sotopia": "envs.sotopia.action:FORMAT"}

# What `admissible` lists, alone, where any words can be said: the strategist's words are the action then.
ANYTHING = "<words>"


class Task(Protocol):
    """One game of an environment. id: the same on every machine, and enough to find the game again."""

    @property
    def id(self) -> str: ...


class Environment(Protocol):
    """One episode at a time; deterministic given the task. Make one instance for each episode played at once."""

    def tasks(self, split: str) -> list[Task]:
        """The games of a split, always in the same order; UserError names the known splits."""

    def default_splits(self) -> tuple[str, str]:
        """Where to train and where to evaluate if nobody says: real data if its folder is named in the environment, else generated games."""

    def find_task(self, identifier: str, split: str | None = None) -> Task:
        """The game with an id (within a split, the rest of the id is enough); UserError when there is none."""

    def task_of_file(self, path: str) -> Task:
        """The game in a file."""

    def reset(self, task: Task | str) -> str:
        """Starts a game, given as a task or its id; returns the first observation."""

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """observation, reward, done, {"success": bool, "admissible": list of str}; WebShop adds "bought": bool, SOTOPIA "end": why it ended."""

    @property
    def admissible(self) -> list[str]:
        """Actions that do something now, sorted or as the page lists them; [ANYTHING] where any words can be said; empty when the game is over."""

    def progress(self) -> float:
        """How far the episode has come, in [0, 1]."""

    def expert_action(self) -> str:
        """What an expert would do now: one who sees everything, or (SOTOPIA) one who sees all that the seat does."""

    def demonstration(
        self, seed: int, *, max_turns: int, actor: Callable[[str, Sequence[str]], str] | None
    ) -> list[tuple[str, str, str]]:
        """The present game, from its start, as an expert who sees only what is shown advises `actor(strategy, admissible)`, or acts itself (None).

        Returns (strategy, action, observation) of each turn; how the expert words its strategies depends on the seed.
        """

    @property
    def task_id(self) -> str:
        """The id of the present game."""

    @property
    def task_type(self) -> str | None:
        """What kind of task the present game is, where its environment has kinds."""

    @property
    def success(self) -> bool:
        """Whether the present game is won."""

    @property
    def outcome(self) -> float | None:
        """What the present game is worth as it stands, in [0, 1]: the environment's own final score, 1 exactly if it is won.

        SOTOPIA's is goal / 10, won is 0.5 or more; None where only an evaluator can say.
        """


@dataclasses.dataclass(frozen=True)
class ActionFormat:
    """How a model that acts answers in an environment whose actions are JSON.

    schema: of an answer, an object. example: how one looks, for the request. read: an answer that fits the schema → the action as `step` takes
    it, or ValueError with a sentence on what is wrong. nothing: the action where no answer can be read. strategy_words: how long a strategy may
    be that the model writes for itself.
    """

    schema: dict[str, Any]
    example: str
    read: Callable[[dict[str, Any]], str]
    nothing: str
    strategy_words: int


def names() -> list[str]:
    """The names that `make` knows."""
    return sorted(REGISTRY)


def make(name: str, **options: Any) -> Environment:
    """The environment of that name. options: its constructor's; see its class."""
    if name not in REGISTRY:
        raise UserError(f"there is no environment {name!r}: use one of {', '.join(names())}")
    return _find(REGISTRY[name])(**options)


def action_format(name: str) -> ActionFormat | None:
    """How a model that acts answers in the environment of that name; None where an action is a line of text."""
    return _find(ACTION_FORMATS[name]) if name in ACTION_FORMATS else None


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
