"""The progress judge, and what happens when a judge fails."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.reward import credit, judge
from epo_jax.trajectory import Trajectory, Turn


def episode(start: float | None, progress: list[float | None], **more: object) -> Trajectory:
    return Trajectory("test", "task", turns=[Turn(progress=p) for p in progress], start_progress=start, **more)


def test_progress_judge_picks_the_turns_that_rose() -> None:
    one = episode(0.25, [0.25, 0.75, 0.5, 1.0])
    counts = asyncio.run(judge.judge_all(judge.ProgressJudge(), [one]))
    assert [turn.process_reward for turn in one.turns] == [0.0, 0.5, -0.25, 0.5]
    assert [credit.picked(turn) for turn in one.turns] == [False, True, False, True]
    assert (counts.scored, counts.failed, counts.turns, counts.picked_turns) == (1, 0, 4, 2)
    assert one.judge == "progress" and one.masked is None


def test_process_rewards_sum_to_the_progress_made() -> None:
    random = np.random.default_rng(0)
    one = episode(0.1, list(random.random(30)))
    asyncio.run(judge.ProgressJudge().score(one))
    np.testing.assert_allclose(sum(turn.process_reward for turn in one.turns), one.turns[-1].progress - 0.1)


def test_missing_progress_masks_the_trajectory_and_gives_no_score() -> None:
    batch = [episode(None, [0.5]), episode(0.0, [0.5, None]), episode(0.0, [1.0])]
    counts = asyncio.run(judge.judge_all(judge.ProgressJudge(), batch))
    assert (counts.scored, counts.failed) == (1, 2)
    assert "start" in batch[0].masked and "turn 2" in batch[1].masked and batch[2].masked is None
    assert [turn.process_reward for turn in batch[1].turns] == [None, None]


class Broken:
    """Gives a score to the first turn, then fails: nothing of it may stay."""

    name = "broken"
    calls = 0
    at_once = 0
    most = 0

    async def score(self, trajectory: Trajectory) -> None:
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        trajectory.turns[0].process_reward = 1.0
        await asyncio.sleep(0)
        self.at_once -= 1
        raise TimeoutError


def test_a_failing_judge_never_stops_a_round() -> None:
    broken = Broken()
    batch = [episode(0.0, [0.5]) for _ in range(9)] + [episode(0.0, [0.5], masked="actor failed")]
    counts = asyncio.run(judge.judge_all(broken, batch, concurrency=4))
    assert (counts.scored, counts.failed, counts.skipped) == (0, 9, 1)
    assert broken.calls == 9 and broken.most == 4
    assert batch[0].masked == "judge broken: TimeoutError" and batch[-1].masked == "actor failed"
    assert batch[0].turns[0].process_reward is None


class Spending:
    """Scores, until its money is gone."""

    name = "spending"

    def __init__(self, affords: int) -> None:
        self.affords, self.asked = affords, 0

    async def score(self, trajectory: Trajectory) -> None:
        await asyncio.sleep(0)
        if self.asked >= self.affords:
            raise UserError("the budget is spent")
        self.asked += 1
        for turn in trajectory.turns:
            turn.process_reward = 1.0


def test_what_fails_all_stops_and_keeps_what_is_scored() -> None:
    batch = [episode(0.0, [0.5, 1.0]) for _ in range(9)]
    with pytest.raises(UserError, match="budget is spent"):
        asyncio.run(judge.judge_all(Spending(4), batch, concurrency=2))
    assert [one.masked for one in batch] == [None] * 9
    assert sum(one.judge == "spending" for one in batch) == 4
    rich = Spending(100)
    counts = asyncio.run(judge.judge_all(rich, batch))
    assert (counts.scored, rich.asked, counts.turns, counts.picked_turns) == (9, 5, 18, 18)  # the four were not asked for again


def test_a_request_to_stop_ends_judging_and_masks_nothing() -> None:
    class Slow(Spending):
        async def score(self, trajectory: Trajectory) -> None:
            if self.asked >= self.affords:
                await asyncio.Event().wait()
            self.asked += 1
            trajectory.turns[0].process_reward = 1.0

    slow, batch = Slow(3), [episode(0.0, [0.5]) for _ in range(6)]
    asyncio.run(judge.judge_all(slow, batch, should_stop=lambda: slow.asked == 3))
    assert [one.masked for one in batch] == [None] * 6 and sum(one.judge == "spending" for one in batch) == 3


def test_the_verifier_leaves_the_outcome_alone() -> None:
    one = episode(0.0, [0.5], outcome=0.75)
    one.turns[0].process_reward = 1.0  # another judge's
    counts = asyncio.run(judge.judge_all(judge.Verifier(), [one]))
    assert counts.scored == 1 and one.turns[0].process_reward is None
    credit.estimate("reinforce", [one], baseline="none")
    assert one.turns[0].advantage == 0.75
