"""The judge (process reward model): names the turns of a finished episode whose strategy decided the outcome.

A judge sets `turn.process_reward` on every turn: above zero for a turn that it picks, zero or below for one that it does not. The `epo`
estimator reads only the sign (picked or not), `reinforce` the value. Failure is data, never a score: a judge that fails for good masks the
trajectory, which is counted; it never stops a round.

`progress` and `verifier` are here; `openai` and `graded` are models behind an API (judge_openai.py). `epo_jax/partners.py` makes the one that a
run names.
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


class Verifier:
    """No process reward at all: the environment's outcome alone decides."""

    name = "verifier"

    async def score(self, trajectory: Trajectory) -> None:
        for turn in trajectory.turns:
            turn.process_reward = None


@dataclasses.dataclass
class JudgeCounts:
    """What became of a batch: trajectories scored, masked because the judge failed, and skipped because they were masked before."""

    scored: int = 0
    failed: int = 0
    skipped: int = 0
    picked_turns: int = 0
    turns: int = 0


async def judge_all(
    judge: Judge,
    trajectories: Sequence[Trajectory],
    *,
    concurrency: int = 32,
    on_judged: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> JudgeCounts:
    """Score all trajectories in place, at most `concurrency` at once; one that the judge fails on is masked ("judge ...: why") and counted.

    A masked trajectory is not sent to the judge, nor is one that this judge has scored already (an earlier start's); it counts as scored.
    A failed one keeps no process reward. `on_judged` is called after each. Cancellation passes through, and so does `UserError` (a spent budget, a
    wrong key), which stops all, as a true `should_stop()` does: what is scored by then stays scored, and nothing is masked for it.
    """
    counts = JudgeCounts()
    gate = asyncio.Semaphore(concurrency)

    async def score(trajectory: Trajectory) -> None:
        if trajectory.masked is not None:
            counts.skipped += 1
            return
        if not _scored_by(judge, trajectory):
            async with gate:
                try:
                    await judge.score(trajectory)
                except UserError:
                    raise
                except Exception as error:  # a judge is foreign code and often a network: whatever it raises masks this trajectory only
                    for turn in trajectory.turns:
                        turn.process_reward = None
                    trajectory.masked = f"judge {judge.name}: {str(error) or type(error).__name__}"
                    counts.failed += 1
                    return
                finally:
                    on_judged()
            trajectory.judge = judge.name
        counts.scored += 1
        counts.turns += len(trajectory.turns)
        counts.picked_turns += sum(turn.process_reward is not None and turn.process_reward > 0.0 for turn in trajectory.turns)

    running = {asyncio.create_task(score(trajectory)) for trajectory in trajectories}
    try:
        while running and not should_stop():
            # The timeout only bounds how long a request to stop goes unseen.
            done, running = await asyncio.wait(running, timeout=0.5, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return counts


def masked_by_judge(trajectory: Trajectory) -> bool:
    """Whether the episode was played whole and only its judge failed: it can be judged again."""
    return trajectory.masked is not None and trajectory.masked.startswith("judge ")


def _scored_by(judge: Judge, trajectory: Trajectory) -> bool:
    return trajectory.judge == judge.name and bool(trajectory.turns) and all(turn.process_reward is not None for turn in trajectory.turns)
