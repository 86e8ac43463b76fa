"""The judge (process reward model): names the turns of a finished episode whose strategy decided the outcome.

A judge sets `turn.process_reward` on every turn: above zero for a turn that it picks, zero or below for one that it does not. The `epo`
estimator reads only the sign (picked or not), `reinforce` the value. Failure is data, never a score: a judge that fails for good masks the
trajectory, which is counted; it never stops a round.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from epo_jax.errors import UserError
from epo_jax.trajectory import Trajectory


class JudgeError(Exception):
    """The judge cannot score this trajectory, and trying again will not help. The message becomes part of `trajectory.masked`."""


class Judge(Protocol):
    """Scores one finished trajectory in place; raises if it cannot."""

    name: str

    async def score(self, trajectory: Trajectory) -> None: ...


class ProgressJudge:
    """The embedded judge: a turn's process reward is the rise of the environment's `progress()` over that turn, in [-1, 1].

    So it picks exactly the turns after which progress was higher than before. The rewards of an episode sum to its progress from start to
    end (a potential difference, Ng et al. 1999), so undoing and redoing a step earns nothing.
    """

    name = "progress"

    async def score(self, trajectory: Trajectory) -> None:
        """Sets every turn's `process_reward`. Raises `JudgeError` where the environment gave no progress."""
        if trajectory.start_progress is None:
            raise JudgeError(f"environment {trajectory.environment!r} reports no progress at the start")
        before = trajectory.start_progress
        rises: list[float] = []
        for number, turn in enumerate(trajectory.turns, start=1):
            if turn.progress is None:
                raise JudgeError(f"environment {trajectory.environment!r} reports no progress after turn {number}")
            rises.append(turn.progress - before)
            before = turn.progress
        for turn, rise in zip(trajectory.turns, rises, strict=True):
            turn.process_reward = rise


@dataclasses.dataclass
class JudgeCounts:
    """What became of a batch: trajectories scored, masked because the judge failed, and skipped because they were masked before."""

    scored: int = 0
    failed: int = 0
    skipped: int = 0
    picked_turns: int = 0
    turns: int = 0


async def judge_all(judge: Judge, trajectories: Sequence[Trajectory], *, concurrency: int = 32) -> JudgeCounts:
    """Score all trajectories in place, at most `concurrency` at once; one that the judge fails on is masked ("judge ...: why") and counted.

    A masked trajectory is not sent to the judge. A failed one keeps no process reward. Cancellation passes through.
    """
    counts = JudgeCounts()
    gate = asyncio.Semaphore(concurrency)

    async def score(trajectory: Trajectory) -> None:
        if trajectory.masked is not None:
            counts.skipped += 1
            return
        trajectory.judge = judge.name
        async with gate:
            try:
                await judge.score(trajectory)
            except Exception as error:  # a judge is foreign code and often a network: whatever it raises masks this trajectory only
                for turn in trajectory.turns:
                    turn.process_reward = None
                trajectory.masked = f"judge {judge.name}: {str(error) or type(error).__name__}"
                counts.failed += 1
                return
        counts.scored += 1
        counts.turns += len(trajectory.turns)
        counts.picked_turns += sum(turn.process_reward is not None and turn.process_reward > 0.0 for turn in trajectory.turns)

    await asyncio.gather(*(score(trajectory) for trajectory in trajectories))
    return counts


JUDGES: dict[str, Callable[[], Judge]] = {ProgressJudge.name: ProgressJudge}


def make(name: str) -> Judge:
    """The judge that `config.judge` names. Raises `UserError` for one that does not exist."""
    if name not in JUDGES:
        raise UserError(f"there is no judge {name!r}: choose one of {', '.join(sorted(JUDGES))}.")
    return JUDGES[name]()
