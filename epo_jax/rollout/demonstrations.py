"""Demonstrations for a warm start: an expert plays and says what it does, and the trajectory looks as if a strategist had.

The expert decides on what it has observed, never on what it cannot know, and its strategies are worded in several ways: some name
the move exactly, some only hint at it. The embedded actor acts on those words, sometimes wrongly, and the expert goes on from
there. A clone therefore speaks in all of these ways, and what is left to learn is which words make its actor act well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import envs
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout import literal
from epo_jax.rollout.play import episode_seed
from epo_jax.rollout.prompts import Prompts
from epo_jax.trajectory import Trajectory, Turn


def demonstrate(
    environment_name: str, task: Any, seed: int, *, conversation: ConversationFormat, prompts: Prompts, max_turns: int
) -> Trajectory:
    """One demonstration on `task` as a trajectory with tokens and advantage 1 on every turn."""
    environment = envs.make(environment_name)
    observation = environment.reset(task)
    trajectory = Trajectory(
        environment=environment_name,
        task_id=environment.task_id,
        first_observation=observation,
        actor="expert",
        seed=seed,
        extra={"messages": prompts.opening(observation), "replies": []},
    )
    for strategy, action, observed in environment.demonstration(seed, max_turns=max_turns, actor=literal.choose):
        trajectory.turns.append(Turn(strategy=strategy, action=action, observation=observed, advantage=1.0))
        trajectory.extra["replies"].append(prompts.after(action, observed))
    trajectory.success = environment.success
    trajectory.outcome = float(environment.success)
    conversation.fill_tokens(trajectory)
    return trajectory


def demonstrations(
    environment_name: str,
    tasks: Sequence[Any],
    *,
    start: int,
    seed: int,
    conversation: ConversationFormat,
    prompts: Prompts,
    max_turns: int,
) -> Iterator[Trajectory]:
    """Demonstrations from the `start`-th on, tasks in a seeded order, over and over. Deterministic.

    Lost episodes are kept: a demonstration shows how an expert speaks, and leaving out those that were misunderstood would
    already be learning from success, which is for the rounds.
    """
    for index in itertools.count(start):
        epoch, place = divmod(index, len(tasks))
        if place == 0 or index == start:
            order = np.random.default_rng([seed, epoch]).permutation(len(tasks))
        trajectory = demonstrate(
            environment_name,
            tasks[order[place]],
            episode_seed(seed, "demonstration", index),
            conversation=conversation,
            prompts=prompts,
            max_turns=max_turns,
        )
        trajectory.extra["index"] = index
        yield trajectory


def texts(environment_name: str, task: Any, seed: int, prompts: Prompts, max_turns: int) -> list[str]:
    """What is read and said in one demonstration, for making a tokenizer."""
    environment = envs.make(environment_name)
    read_and_said = [environment.reset(task)]
    for strategy, action, observed in environment.demonstration(seed, max_turns=max_turns, actor=literal.choose):
        read_and_said += [strategy, prompts.after(action, observed)]
    return read_and_said
