"""Trajectories to arrays: alignment, weights, what is left out, and that everything left out is counted; padded and packed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from epo_jax.batch import UNKNOWN_LOGPROB, TrajectoryBatch, make_batches, pack, pad, pass_lengths, turns_that_fit
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
    assert all(array.shape == (1, 1, 32) for array in batch)
    row = TrajectoryBatch(*(array[0, 0] for array in batch))
    assert row.tokens[:11].tolist() == list(range(1, 12)) and (row.tokens[11:] == 99).all()
    assert row.tokens[:11].tolist() == trajectory.tokens
    assert row.positions.tolist() == list(range(11)) + [0] * 21
    assert row.segment_ids.tolist() == [1] * 11 + [0] * 21
    assert row.turn_ids.tolist() == [0, 0, 0, 1, 1, 0, 2, 2, 2, 0, 3] + [0] * 21
    weights = np.zeros(32)
    weights[3:5] = 0.5 / (3 * 2)  # A_t / (T_i k_t); T_i counts the turn of advantage zero
    weights[10] = -2.0 / (3 * 1)
    np.testing.assert_allclose(row.loss_weights, weights, rtol=1e-6)
    expected = np.zeros(32)
    for t in (3, 4, 6, 7, 8, 10):
        expected[t] = -0.1 * row.tokens[t]
    np.testing.assert_allclose(row.behavior_logprobs, expected, rtol=1e-6)
    assert [array.dtype for array in batch] == [np.int32] * 3 + [np.float32] * 2 + [np.int32]
    assert (counts.trajectories, counts.tokens, counts.padding) == (1, 11, 5)  # computed at the bucket of 16


def test_each_pass_gets_the_smallest_bucket_that_holds_it() -> None:
    """Steps of four trajectories in the order given; within a step the longest come first. Only what is computed counts as padding."""
    trajectories = [one_turn(length, token) for token, length in enumerate([3, 8, 9, 17, 2], start=1)]
    batches, counts = pad(trajectories, rows=2, accumulation=2, **BUCKETS)
    assert [batch.tokens.shape for batch in batches] == [(2, 2, 32), (2, 2, 32)]
    assert [batch.tokens[:, :, 0].tolist() for batch in batches] == [[[4, 3], [2, 1]], [[5, 99], [99, 99]]]
    assert [pass_lengths(batch, (8, 16, 32)) for batch in batches] == [[32, 8], [8, 0]]
    assert [pass_lengths(batch, lengths) for batch, lengths in ((batches[0], ()), (batches[1], (1, 2)))] == [[32, 32], [2, 0]]
    assert batches[1].segment_ids[0, 1].max() == 0 and batches[1].loss_weights[0, 1].max() == 0  # the row that fills up
    assert counts.tokens == 3 + 8 + 9 + 17 + 2 and counts.tokens + counts.padding == 2 * (32 + 8 + 8)


def test_accumulation_is_the_leading_axis() -> None:
    batches, _ = pad([one_turn(4, token) for token in range(1, 8)], rows=2, accumulation=3, **BUCKETS)
    assert [batch.tokens.shape for batch in batches] == [(3, 2, 32), (3, 2, 32)]
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


# --- packing ----------------------------------------------------------------------------------------------------------------------------------


def unequal(count: int, seed: int, longest: int = 1024) -> list[Trajectory]:
    """Lengths as of episodes in two environments: log-normal around 420 tokens, a few of them near the longest; several turns each."""
    random = np.random.default_rng(seed)
    result = []
    for length in np.clip(random.lognormal(np.log(420), 0.55, count), 40, longest).astype(int):
        turns = int(random.integers(1, 6))
        cuts = np.sort(random.choice(np.arange(1, length // 4), turns - 1, replace=False)) * 4
        ends = [*cuts.tolist(), int(length)]
        tokens = random.integers(1, 60, length).tolist()
        result.append(Trajectory("test", "task", turns=[
            turn(tokens[start : end - 2], tokens[end - 2 : end], float(random.normal())) for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]))  # fmt: skip
    return result


def test_packed_rows_by_hand() -> None:
    """Longest first, each into the first row with room: 9+7, 8+5+3, and the shorter ones start where the longer ends."""
    trajectories = [one_turn(length, token) for token, length in enumerate([5, 9, 3, 8, 7], start=1)]
    trajectories[0] = Trajectory("test", "task", turns=[turn([1, 1], [1], 0.5), turn([], [1, 1], -1.0)])
    (batch,), counts = pack(trajectories, rows=5, max_length=16, pad_id=99)
    assert all(array.shape == (5, 1, 16) for array in batch)
    rows = TrajectoryBatch(*(array[:, 0] for array in batch))
    assert rows.tokens[:2].tolist() == [[2] * 9 + [5] * 7, [4] * 8 + [1] * 5 + [3] * 3]
    assert rows.positions[:2].tolist() == [[*range(9), *range(7)], [*range(8), *range(5), *range(3)]]
    assert rows.segment_ids[:2].tolist() == [[1] * 9 + [2] * 7, [1] * 8 + [2] * 5 + [3] * 3]
    assert rows.turn_ids[:2].tolist() == [[0] * 8 + [1] + [0] * 6 + [2], [0] * 7 + [1] + [0, 0, 2, 3, 3] + [0, 0, 4]]  # counted through the row
    np.testing.assert_allclose(rows.loss_weights[1], [0] * 7 + [1.0] + [0, 0, 0.5 / 2, -1.0 / 4, -1.0 / 4] + [0, 0, 1.0])
    assert (rows.segment_ids[2:] == 0).all() and (rows.tokens[2:] == 99).all()  # passes that the step does not compute
    assert (counts.trajectories, counts.tokens, counts.padding) == (5, 32, 0)


@pytest.mark.parametrize(("rows", "accumulation", "ways"), [(4, 8, 1), (3, 5, 1), (8, 4, 4), (16, 2, 8)])
def test_packed_steps_hold_what_padded_steps_hold(rows: int, accumulation: int, ways: int) -> None:
    """The same trajectories, each whole and once, with the same weights; in shapes that differ in T alone."""
    trajectories = unequal(77, seed=1)
    options = {"rows": rows, "accumulation": accumulation, "max_length": 1000, "pad_id": 0}
    padded, padded_counts = pad(trajectories, length_buckets=(512, 1000), **options)
    packed, counts = pack(trajectories, ways=ways, **options)
    assert len(packed) == len(padded)

    def contents(batch: TrajectoryBatch) -> list[tuple]:
        found = []
        flat = [array.reshape(-1, array.shape[-1]) for array in batch]
        for row in zip(*flat, strict=True):
            row = TrajectoryBatch(*row)
            for segment in range(1, row.segment_ids.max(initial=0) + 1):
                here = row.segment_ids == segment
                assert np.ptp(np.flatnonzero(here)) == here.sum() - 1  # in one piece
                turns = row.turn_ids[here]
                found.append((*(tuple(row[k][here].tolist()) for k in (0, 1, 3, 4)), tuple(np.where(turns, turns - turns[turns > 0].min() + 1, 0).tolist())))
        return sorted(found)

    for one, other in zip(padded, packed, strict=True):
        assert contents(one) == contents(other)
        assert other.tokens.shape[:2] == (-(-rows * accumulation // ways), ways)
        assert ways * other.tokens.shape[2] <= rows * 1000  # a pass is no larger than a padded one may be
    assert dataclasses.replace(counts, padding=0) == dataclasses.replace(padded_counts, padding=0)
    assert len({batch.tokens.shape for batch in packed}) <= 16


@pytest.mark.parametrize(("size", "seed"), [((4, 8), 0), ((8, 8), 1), ((4, 4), 2)])
def test_packing_leaves_less_than_five_per_cent_padding(size: tuple[int, int], seed: int) -> None:
    """On unequal lengths; padding leaves several times as much, though every pass has its own length. The measure counts every entry of the passes that are computed."""
    options = {"rows": size[0], "accumulation": size[1], "max_length": 1024, "pad_id": 0}
    trajectories = unequal(8 * size[0] * size[1], seed)
    batches, counts = pack(trajectories, **options)
    assert counts.padding_share < 0.05
    computed = [batch.segment_ids[batch.segment_ids.any(axis=(1, 2))] for batch in batches]
    assert counts.padding == sum(int((ids == 0).sum()) for ids in computed) and counts.tokens == sum(len(t.tokens) for t in trajectories)
    assert 0.1 < pad(trajectories, length_buckets=(256, 384, 512, 640, 768, 1024), **options)[1].padding_share < 0.25  # 0.4 and more at one length a step


def test_packing_cuts_and_refuses_as_padding_does() -> None:
    long = Trajectory("test", "long", turns=[turn([1] * 6, [2] * 4, 0.25), turn([3] * 6, [4] * 4, 0.5), turn([5] * 8, [6] * 5, 1.0)])
    hopeless = Trajectory("test", "hopeless", turns=[turn([1] * 30, [2] * 4), turn([3], [4])])
    assert (turns_that_fit(long, 32), turns_that_fit(hopeless, 32), turns_that_fit(one_turn(32), 32)) == (2, 0, 1)
    (batch,), counts = pack([long, hopeless, one_turn(3), one_turn(4, masked="judge failed")], rows=4, max_length=32, pad_id=0)
    assert (counts.trajectories, counts.shortened, counts.too_long, counts.dropped_turns, counts.masked) == (2, 1, 1, 3, 1)
    assert batch.tokens.shape == (4, 1, 24) and batch.segment_ids[0, 0].tolist() == [1] * 20 + [2] * 3 + [0]
    with pytest.raises(ValueError, match="no advantage"):
        pack([Trajectory("test", "task", turns=[turn([1], [2], None)])], rows=1, max_length=8, pad_id=0)
    with pytest.raises(UserError, match="rows"):
        pack([], rows=1, accumulation=0, max_length=8, pad_id=0)
    assert make_batches([one_turn(3)], packing=True, rows=1, ways=1, **BUCKETS)[0][0].tokens.shape == (1, 1, 4)
    assert make_batches([one_turn(3)], packing=False, rows=1, ways=1, **BUCKETS)[0][0].tokens.shape == (1, 1, 32)
