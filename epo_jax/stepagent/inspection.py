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
from epo_jax.hosts import exchange, shares
from epo_jax.model.conversation import ConversationFormat
from epo_jax.trajectory import Trajectory, Turn


async def inspect(
    engine: Engine,
    conversation: ConversationFormat,
    trajectories: Sequence[Trajectory],
    sampling: Sampling,
    *,
    at_once: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_inspected: Callable[[], None] = lambda: None,
) -> None:
    """Sets `extra["inspected"]` of expert trajectories with tokens: for each turn, as far as the engine's context reaches, the policy's action.

    An action is {"tokens", "logprobs", "text"}, with the log-probabilities of when it was sampled. It depends on the trajectory, its seed and the
    weights alone. Those that `should_stop()` came before have none.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(trajectory: Trajectory) -> None:
        async with gate:
            if should_stop():
                return
            session = engine.open(trajectory.seed)
            try:
                actions, waiting = [], list[int]()
                for turn in trajectory.turns:
                    waiting = [*waiting, *turn.prompt_tokens]
                    state = len(session.tokens) + len(waiting)
                    try:
                        sampled = await engine.generate(session, waiting, sampling)
                    except ContextFull:
                        break
                    engine.rewind(session, state)
                    actions.append({"tokens": sampled.tokens, "logprobs": sampled.logprobs, "text": conversation.text(sampled.tokens)})
                    waiting = list(turn.tokens)
                trajectory.extra["inspected"] = actions
                on_inspected()
            finally:
                engine.close(session)

    await asyncio.gather(*(one(trajectory) for trajectory in trajectories))


def exchange_inspected(trajectories: Sequence[Trajectory]) -> bool:
    """Of several processes each has inspected its share (`shares.of`): sets `extra["inspected"]` of all trajectories at all of them.

    False, everywhere, where a process was stopped before it had inspected all of its share.
    """
    for process, theirs in enumerate(exchange.gather_json([trajectory.extra.get("inspected") for trajectory in shares.of(trajectories)])):
        for trajectory, found in zip(trajectories[process :: exchange.count()], theirs, strict=True):
            if found is not None:
                trajectory.extra["inspected"] = found
    return all("inspected" in trajectory.extra for trajectory in trajectories)


def inspected(trajectories: Sequence[Trajectory], max_length: int) -> list[Trajectory]:
    """The trajectories with the turns that were inspected and whose states, with the two actions of each, are at most `max_length` tokens together.

    As rows that branch have them (branches.py). A trajectory of which no turn is left is left out.
    """
    kept = []
    for trajectory in trajectories:
        length = count = 0
        for turn, found in zip(trajectory.turns, trajectory.extra["inspected"], strict=False):  # the engine's context may have ended it early
            length += len(turn.prompt_tokens) + len(turn.tokens) + 1 + len(found["tokens"])
            if length > max_length:
                break
            count += 1
        if count:
            extra = trajectory.extra | {"inspected": trajectory.extra["inspected"][:count]}
            kept.append(dataclasses.replace(trajectory, turns=trajectory.turns[:count], extra=extra))
    return kept


def differing(trajectory: Trajectory) -> np.ndarray:
    """bool [n]: at which of the inspected states the policy said another thing than the expert."""
    pairs = zip(trajectory.turns, trajectory.extra["inspected"], strict=True)
    return np.array([" ".join(turn.strategy.split()) != " ".join(found["text"].split()) for turn, found in pairs])


def states_of(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The record of what was rewarded: every inspected state with the policy's action there, as a trajectory of one turn.

    Reward, values and advantage of that action stand at the expert's turn while they are worked out; here they come to the action itself.
    """
    records = []
    for trajectory in trajectories:
        state: list[int] = []
        for turn, found in zip(trajectory.turns, trajectory.extra["inspected"], strict=True):
            state = [*state, *turn.prompt_tokens]
            said = Turn(
                prompt_tokens=state, tokens=found["tokens"], logprobs=found["logprobs"], strategy=found["text"],
                process_reward=turn.process_reward, values=turn.values, advantage=turn.advantage,
            )  # fmt: skip
            lineage = {name: getattr(trajectory, name) for name in ("judge", "round", "weights_version", "seed")}
            records.append(Trajectory(trajectory.environment, trajectory.task_id, turns=[said], actor="policy", **lineage))
            state = [*state, *turn.tokens]
    return records
