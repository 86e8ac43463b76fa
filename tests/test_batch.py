"""Trajectories to arrays: alignment, weights, what is left out, and that everything left out is counted."""

from __future__ import annotations

import numpy as np
import pytest

from epo_jax.batch import UNKNOWN_LOGPROB, TrajectoryBatch, pad
from epo_jax.errors import UserError
from epo_jax.trajectory import Trajectory, Turn

BUCKETS = {"length_buckets": (8, 16, 32), "max_length": 32, "pad_id": 99}


def turn(prompt: list[int], tokens: list[int], advantage: float | None = 1.0, logprobs: bool = True) -> Turn:
    return Turn(prompt_tokens=prompt, tokens=tokens, logprobs=[-0.1 * t for t in tokens] if logprobs else [], advantage=advantage)


def one_turn(length: int, token: int = 5, **more: object) -> Trajectory:
    return Trajectory("test", "task", turns=[turn([token] * (length - 1), [token])], **more)


def test_alignment_and_weights_by_hand() -> None:
    trajectory = Trajectory("test", "task", turns=[turn([1, 2, 3], [4, 5], 0.5), turn([6], [7, 8, 9], 0.0), turn([10], [11], -2.0)])
    (batch,), counts = pad([trajectory], rows=1, **BUCKETS)
    assert all(array.shape == (1, 1, 16) for array in batch)
    row = TrajectoryBatch(*(array[0, 0] for array in batch))
    assert row.tokens[:11].tolist() == list(range(1, 12)) and (row.tokens[11:] == 99).all()
    assert row.tokens[:11].tolist() == trajectory.tokens
    assert row.positions.tolist() == list(range(11)) + [0] * 5
    assert row.segment_ids.tolist() == [1] * 11 + [0] * 5
    assert row.turn_ids.tolist() == [0, 0, 0, 1, 1, 0, 2, 2, 2, 0, 3] + [0] * 5
    weights = np.zeros(16)
    weights[3:5] = 0.5 / (3 * 2)  # A_t / (T_i k_t); T_i counts the turn of advantage zero
    weights[10] = -2.0 / (3 * 1)
    np.testing.assert_allclose(row.loss_weights, weights, rtol=1e-6)
    expected = np.zeros(16)
    for t in (3, 4, 6, 7, 8, 10):
        expected[t] = -0.1 * row.tokens[t]
    np.testing.assert_allclose(row.behavior_logprobs, expected, rtol=1e-6)
    assert [array.dtype for array in batch] == [np.int32] * 3 + [np.float32] * 2 + [np.int32]
    assert (counts.trajectories, counts.tokens, counts.padding) == (1, 11, 5)


def test_each_step_gets_the_smallest_bucket_and_keeps_the_order() -> None:
    trajectories = [one_turn(length, token) for token, length in enumerate([3, 8, 9, 2, 17], start=1)]
    batches, counts = pad(trajectories, rows=2, **BUCKETS)
    assert [batch.tokens.shape for batch in batches] == [(1, 2, 8), (1, 2, 16), (1, 2, 32)]
    assert [batch.tokens[0, :, 0].tolist() for batch in batches] == [[1, 2], [3, 4], [5, 99]]
    assert batches[2].segment_ids[0, 1].max() == 0 and batches[2].loss_weights[0, 1].max() == 0  # the row that fills up
    assert counts.tokens + counts.padding == sum(batch.tokens.size for batch in batches)
    assert counts.tokens == 3 + 8 + 9 + 2 + 17


def test_accumulation_is_the_leading_axis() -> None:
    batches, _ = pad([one_turn(4, token) for token in range(1, 8)], rows=2, accumulation=3, **BUCKETS)
    assert [batch.tokens.shape for batch in batches] == [(3, 2, 8), (3, 2, 8)]
    assert batches[0].tokens[:, :, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batches[1].segment_ids[:, :, 0].tolist() == [[1, 0], [0, 0], [0, 0]]


def test_too_long_trajectories_lose_whole_last_turns_and_are_counted() -> None:
    long = Trajectory("test", "long", turns=[turn([1] * 6, [2] * 4, 0.25), turn([3] * 6, [4] * 4, 0.5), turn([5] * 8, [6] * 5, 1.0)])
    hopeless = Trajectory("test", "hopeless", turns=[turn([1] * 30, [2] * 4), turn([3], [4])])
    (batch,), counts = pad([long, hopeless, one_turn(3)], rows=2, **BUCKETS)
    assert (counts.trajectories, counts.shortened, counts.too_long, counts.dropped_turns) == (2, 1, 1, 1 + 2)
    assert batch.segment_ids[0, 0].sum() == 20
    assert batch.turn_ids[0, 0].max() == 2
    np.testing.assert_allclose(batch.loss_weights[0, 0, 16:20], 0.5 / (3 * 4), rtol=1e-6)  # weighs what it did in the whole episode


def test_masked_and_empty_trajectories_are_left_out_and_counted() -> None:
    masked = one_turn(4, masked="judge failed")
    masked.turns[0].advantage = None
    batches, counts = pad([masked, Trajectory("test", "empty"), one_turn(4)], rows=4, **BUCKETS)
    assert len(batches) == 1 and batches[0].segment_ids.max(axis=2).sum() == 1
    assert (counts.trajectories, counts.masked, counts.without_turns) == (1, 1, 1)
    assert pad([masked], rows=4, **BUCKETS)[0] == []


def test_unknown_behaviour_is_marked_and_a_turn_may_say_nothing() -> None:
    trajectory = Trajectory("test", "task", turns=[turn([1, 2], [3], logprobs=False), turn([4], []), turn([5], [6], 0.9)])
    (batch,), _ = pad([trajectory], rows=1, **BUCKETS)
    assert batch.behavior_logprobs[0, 0, 2] == UNKNOWN_LOGPROB > 0
    np.testing.assert_allclose(batch.loss_weights[0, 0, 5], 0.9 / 3, rtol=1e-6)  # the silent turn counts in T_i
    assert np.isfinite(batch.loss_weights).all()


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="no advantage"):
        pad([Trajectory("test", "task", turns=[turn([1], [2], None)])], rows=1, **BUCKETS)
    with pytest.raises(ValueError, match="log-probabilities"):
        pad([Trajectory("test", "task", turns=[Turn(prompt_tokens=[1], tokens=[2, 3], logprobs=[-1.0], advantage=1.0)])], rows=1, **BUCKETS)
    with pytest.raises(UserError, match="bucket of 64"):
        pad([], rows=1, length_buckets=(8, 16), max_length=64, pad_id=0)
    with pytest.raises(UserError, match="rows"):
        pad([], rows=0, **BUCKETS)
