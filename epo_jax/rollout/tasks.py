"""Which games a run plays: the environments that it mixes, each with its share, splits, prompts and length.

A share is relative: {alfworld: 1, webshop: 3} plays one household for every three trips. The mixture is exact rather than drawn: of the
first n episodes every environment has its share of n, but for less than one episode for each environment.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import envs
from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.rollout import prompts
from epo_jax.rollout.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """One environment's part in a run. share: of the episodes, all task sets together 1; options: of the environment's constructor.

    max_words: how many words of a strategy the actor gets to read, 0: all.
    """

    environment: str
    share: float
    train_split: str
    eval_split: str
    train: Sequence[Any]
    held_out: Sequence[Any]
    prompts: Prompts
    max_turns: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_words: int = 0

    @property
    def two_seats(self) -> bool:
        """Whether its episodes are conversations, of which either seat or both can be advised."""
        return self.environment in envs.TWO_SEATS

    def make(self) -> envs.Environment:
        """An environment for one episode."""
        return envs.make(self.environment, **self.options)

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} {self.environment} {self.train_split} ({len(self.train)} tasks, "
            f"{len(self.held_out)} held out from {self.eval_split})"
        )


def load(config: ConfigDict, *, train: bool = True) -> list[TaskSet]:
    """The task sets of `config.environments` whose share is not 0, without the tasks to train on where nobody will.

    Raises `UserError` for one that cannot be played.
    """
    shares = {name: settings.share for name, settings in sorted(config.environments.items())}
    for name, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise UserError(f"environments.{name}.share is {share}: give 0 (not played) or more.")
    if not any(shares.values()):
        raise UserError(f"every share is 0: give one of {', '.join(f'environments.{name}.share' for name in shares)} more.")
    total = math.fsum(shares.values())
    played = {name: share / total for name, share in shares.items() if share}
    return all_or_what_is_missing(
        *(
            functools.partial(_load_one, name, config.environments[name], share, config.evaluate.tasks, train=train)
            for name, share in played.items()
        )
    )


def _load_one(name: str, settings: ConfigDict, share: float, held_out: int, *, train: bool) -> TaskSet:
    options = settings.options.to_dict()
    environment = envs.make(name, **options)
    train_split, eval_split = (
        usual if split == "auto" else split
        for split, usual in zip((settings.train_split, settings.eval_split), environment.default_splits(), strict=True)
    )
    if settings.max_turns < 1:
        raise UserError(f"environments.{name}.max_turns is {settings.max_turns}: an episode has at least one turn.")
    if settings.max_words < 0:
        raise UserError(f"environments.{name}.max_words is {settings.max_words}: give 0 (all of them) or more.")
    return TaskSet(
        environment=name,
        share=share,
        train_split=train_split,
        eval_split=eval_split,
        train=environment.tasks(train_split) if train else [],
        held_out=_sample(environment.tasks(eval_split), held_out),
        prompts=prompts.load(name, settings.prompt),
        max_turns=settings.max_turns,
        options=options,
        max_words=settings.max_words,
    )


def _sample(tasks: Sequence[Any], count: int) -> list[Any]:
    """`count` tasks, the same ones every time."""
    if len(tasks) <= count:
        return list(tasks)
    return [tasks[index] for index in sorted(np.random.default_rng(0).permutation(len(tasks))[:count])]


def mixed(index: int, shares: Sequence[float]) -> tuple[int, int]:
    """(which share the `index`-th episode of an endless mixture belongs to, how many before it belong to the same).

    The last share takes every index at which index * share passes a whole number; what is left is dealt out among the others alike.
    """
    for which in range(len(shares) - 1, 0, -1):
        part = shares[which] / math.fsum(shares[: which + 1])
        before, after = math.floor(index * part), math.floor((index + 1) * part)
        if after > before:
            return which, before
        index -= before
    return 0, index


def dealt(task_sets: Sequence[TaskSet], index: int, seed: Sequence[int]) -> tuple[TaskSet, Any]:
    """The `index`-th training task of an endless mixture; each task of a set comes once before any comes twice, in a seeded order."""
    which, place = mixed(index, [task_set.share for task_set in task_sets])
    tasks = task_sets[which].train
    epoch, place = divmod(place, len(tasks))
    return task_sets[which], tasks[_order(len(tasks), (*seed, which, epoch))[place]]


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
