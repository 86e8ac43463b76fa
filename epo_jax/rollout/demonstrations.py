"""Demonstrations for a warm start: an expert plays and says what it does, and the trajectory looks as if a strategist had.

The expert decides on what it has observed, never on what it cannot know, and its strategies are worded in several ways: some name
the move exactly, some only hint at it. The embedded actor acts on those words, sometimes wrongly, and the expert goes on from
there. A clone therefore speaks in all of these ways, and what is left to learn is which words make its actor act well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout import literal
from epo_jax.rollout.play import episode_seed
from epo_jax.rollout.prompts import Prompts
from epo_jax.rollout.tasks import TaskSet, dealt
from epo_jax.trajectory import Trajectory, Turn


def demonstrate(task_set: TaskSet, task: Any, seed: int, conversation: ConversationFormat) -> Trajectory:
    """One demonstration on `task` as a trajectory with tokens and advantage 1 on every turn."""
    environment, prompts = task_set.make(), task_set.prompts
    observation = environment.reset(task)
    trajectory = Trajectory(
        environment=task_set.environment,
        task_id=environment.task_id,
        first_observation=observation,
        actor="expert",
        seed=seed,
        extra={"messages": prompts.opening(observation), "replies": []},
    )
    for strategy, action, observed in environment.demonstration(seed, max_turns=task_set.max_turns, actor=_actor(prompts)):
        said = prompts.demonstrated(strategy, action)
        trajectory.turns.append(Turn(strategy=said, action=action, observation=observed, advantage=1.0))
        trajectory.extra["replies"].append(prompts.after(action, observed))
    trajectory.success = environment.success
    trajectory.outcome = environment.outcome
    conversation.fill_tokens(trajectory)
    return trajectory


def demonstrations(task_sets: Sequence[TaskSet], *, start: int, seed: int, conversation: ConversationFormat) -> Iterator[Trajectory]:
    """Demonstrations from the `start`-th on: every task set's share, tasks in a seeded order, over and over. Deterministic.

    Lost episodes are kept: a demonstration shows how an expert speaks, and leaving out those that were misunderstood would
    already be learning from success, which is for the rounds.
    """
    for index in itertools.count(start):
        trajectory = demonstrate(*dealt(task_sets, index, (seed,)), episode_seed(seed, "demonstration", index), conversation)
        trajectory.extra["index"] = index
        yield trajectory


def texts(task_sets: Sequence[TaskSet], count: int) -> Iterator[str]:
    """What is read and said in `count` demonstrations of every task set, for making a tokenizer."""
    for task_set in task_sets:
        for index in range(count):
            yield from _texts_of_one(task_set, task_set.train[index % len(task_set.train)], index)


def _texts_of_one(task_set: TaskSet, task: Any, seed: int) -> list[str]:
    environment = task_set.make()
    read_and_said = [environment.reset(task)]
    for strategy, action, observed in environment.demonstration(seed, max_turns=task_set.max_turns, actor=_actor(task_set.prompts)):
        read_and_said += [task_set.prompts.demonstrated(strategy, action), task_set.prompts.after(action, observed)]
    return read_and_said


def _actor(prompts: Prompts) -> Callable[[str, Sequence[str]], str] | None:
    """Who acts on the expert's words: the embedded actor, or for a policy that acts itself the expert itself (None)."""
    return None if prompts.acts else literal.choose
