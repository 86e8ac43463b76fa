"""Inspection: an expert's trajectory is split after each action, and at each state the policy says what it would do. Nothing is played.

The states of one trajectory are the prefixes of one conversation, so they share one session of the engine: the policy's action is sampled, the
session goes back to the state, and reads the expert's action and what followed it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from epo_jax.generate.engine import ContextFull, Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.trajectory import Trajectory, Turn


@dataclasses.dataclass(frozen=True)
class Pair:
    """One state ŝ_i of an expert's trajectory (the tokens before its i-th action), with the expert's action and the policy's.

    differ: whether the two say different things. logprobs: the policy's of its own action, when it was sampled.
    """

    environment: str
    task_id: str
    state: list[int]
    expert: list[int]
    policy: list[int]
    logprobs: list[float]
    differ: bool


async def inspect(
    engine: Engine,
    conversation: ConversationFormat,
    trajectories: Sequence[Trajectory],
    sampling: Sampling,
    *,
    at_once: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_inspected: Callable[[], None] = lambda: None,
) -> bool:
    """Sets `extra["inspected"]` of expert trajectories with tokens: for each turn, as far as the engine's context reaches, the policy's action.

    An action is {"tokens", "logprobs", "text"}. It depends on the trajectory, its seed and the weights alone. False where `should_stop()` ended it.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(trajectory: Trajectory) -> None:
        async with gate:
            if should_stop():
                return
            session = engine.open(trajectory.seed)
            try:
                inspected, waiting = [], list[int]()
                for turn in trajectory.turns:
                    waiting = [*waiting, *turn.prompt_tokens]
                    state = len(session.tokens) + len(waiting)
                    try:
                        sampled = await engine.generate(session, waiting, sampling)
                    except ContextFull:
                        break
                    engine.rewind(session, state)
                    inspected.append({"tokens": sampled.tokens, "logprobs": sampled.logprobs, "text": conversation.text(sampled.tokens)})
                    waiting = list(turn.tokens)
                trajectory.extra["inspected"] = inspected
                on_inspected()
            finally:
                engine.close(session)

    await asyncio.gather(*(one(trajectory) for trajectory in trajectories))
    return all("inspected" in trajectory.extra for trajectory in trajectories)


def pairs_of(trajectories: Sequence[Trajectory], max_length: int) -> list[Pair]:
    """The pairs of inspected trajectories, in order, whose state and longer action are at most `max_length` tokens together."""
    pairs = []
    for trajectory in trajectories:
        state: list[int] = []
        for turn, found in zip(trajectory.turns, trajectory.extra["inspected"], strict=False):  # the engine's context may have ended it early
            state = [*state, *turn.prompt_tokens]
            if len(state) + max(len(turn.tokens), len(found["tokens"])) <= max_length:
                differ = " ".join(turn.strategy.split()) != " ".join(found["text"].split())
                pairs.append(Pair(trajectory.environment, trajectory.task_id, state, turn.tokens, found["tokens"], found["logprobs"], differ))
            state = [*state, *turn.tokens]
    return pairs


def drawn(pairs: Sequence[Pair], count: int, seed: Sequence[int]) -> list[Pair]:
    """At most `count` of the pairs, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[index] for index in order[:count]]


def as_trajectory(pair: Pair, *, expert: bool = False) -> Trajectory:
    """The state with one of its two actions as a trajectory of one turn."""
    tokens, logprobs = (pair.expert, []) if expert else (pair.policy, pair.logprobs)
    turn = Turn(prompt_tokens=pair.state, tokens=tokens, logprobs=logprobs)
    return Trajectory(pair.environment, pair.task_id, turns=[turn], actor="expert" if expert else "policy")
