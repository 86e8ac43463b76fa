"""Advantages by hand calculation, and the rules that every estimator keeps."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.reward import credit
from epo_jax.trajectory import Trajectory, Turn


def episode(process: list[float | None], outcome: float, masked: str | None = None) -> Trajectory:
    return Trajectory("test", "task", turns=[Turn(process_reward=p, values=[0.0]) for p in process], outcome=outcome, masked=masked)


def advantages(trajectory: Trajectory) -> list[float | None]:
    return [turn.advantage for turn in trajectory.turns]


# --- epo ------------------------------------------------------------------------------------------------------------------------------------


def test_epo_by_hand() -> None:
    one = episode([None, 1.0, 0.0, None], outcome=0.5)
    credit.estimate("epo", [one])
    g3 = 0.5
    g2 = 0.99 * g3
    g1 = 1.0 + 0.99 * g2
    g0 = 0.99 * g1
    np.testing.assert_allclose(advantages(one), np.array([g0, g1, g2, g3]) / g1, rtol=1e-12)


def test_epo_pick_of_the_last_turn_replaces_the_outcome() -> None:
    one = episode([0.0, 1.0], outcome=0.4)
    credit.estimate("epo", [one])
    assert advantages(one) == [0.99, 1.0]


def test_epo_forgets_the_size_of_the_outcome_when_nothing_is_picked() -> None:
    small, large = episode([None, None, None], 0.1), episode([None, None, None], 1.0)
    credit.estimate("epo", [small, large])
    np.testing.assert_allclose(advantages(small), [0.99**2, 0.99, 1.0], rtol=1e-12)
    np.testing.assert_allclose(advantages(small), advantages(large), rtol=1e-12)


def test_epo_without_any_reward_is_zero() -> None:
    one = episode([None, 0.0], outcome=0.0)
    credit.estimate("epo", [one])
    assert advantages(one) == [0.0, 0.0]


def test_epo_counts_only_positive_process_rewards_as_picks() -> None:
    one = episode([-0.5, 0.25, 0.0], outcome=0.0)
    credit.estimate("epo", [one])
    np.testing.assert_allclose(advantages(one), [0.99, 1.0, 0.0])


def test_epo_discount_is_an_option() -> None:
    one = episode([None, None], outcome=1.0)
    credit.estimate("epo", [one], discount=0.5)
    assert advantages(one) == [0.5, 1.0]


# --- reinforce ------------------------------------------------------------------------------------------------------------------------------


def test_reinforce_by_hand() -> None:
    first, second = episode([0.5, None], 1.0), episode([-0.5], 0.0)
    credit.estimate("reinforce", [first, second], discount=0.5, process_weight=2.0)
    # Returns: first [1 + 0.5 * 1, 1], second [-1]; baseline: mean of (1.25, -1).
    np.testing.assert_allclose(advantages(first), [1.5 - 0.125, 1.0 - 0.125])
    np.testing.assert_allclose(advantages(second), [-1.0 - 0.125])


def test_reinforce_baseline_over_turns_and_none() -> None:
    first, second = episode([None, None], 1.0), episode([None], 0.0)
    credit.estimate("reinforce", [first, second], discount=1.0, baseline="turn")
    np.testing.assert_allclose(advantages(first) + advantages(second), [1 / 3, 1 / 3, -2 / 3])
    credit.estimate("reinforce", [first, second], discount=1.0, baseline="none")
    assert advantages(first) + advantages(second) == [1.0, 1.0, 0.0]


def test_reinforce_leave_one_out_by_hand() -> None:
    """Returns: first [1, 1] (mean 1), second [0], third [0.5, 0.5]; each against the mean of the two others."""
    batch = [episode([None, None], 1.0), episode([None], 0.0), episode([None, None], 0.5)]
    credit.estimate("reinforce", batch, discount=1.0, baseline="leave_one_out")
    assert [advantages(one) for one in batch] == [[0.75, 0.75], [-0.75], [0.0, 0.0]]
    assert abs(sum(np.mean(advantages(one)) for one in batch)) < 1e-12
    alone = episode([1.0, None], 1.0)
    credit.estimate("reinforce", [alone], baseline="leave_one_out")
    assert advantages(alone) == [0.0, 0.0]


def test_reinforce_leave_one_out_is_unbiased_by_its_own_return() -> None:
    """Raising one episode's outcome raises its own advantages by as much, and nothing is taken off by its own share in the baseline."""
    found = []
    for outcome in (0.0, 0.7):
        batch = [episode([None], outcome), episode([None], 0.2), episode([None], 0.9)]
        credit.estimate("reinforce", batch, baseline="leave_one_out")
        found.append(batch[0].turns[0].advantage)
    np.testing.assert_allclose(found[1] - found[0], 0.7)


def test_reinforce_is_centred_as_the_loss_weighs_turns() -> None:
    random = np.random.default_rng(0)
    batch = [episode(list(random.normal(size=random.integers(1, 9))), random.random()) for _ in range(20)]
    credit.estimate("reinforce", batch)
    assert abs(sum(np.mean(advantages(one)) for one in batch)) < 1e-12


def test_reinforce_can_be_negative_and_knows_the_size_of_the_outcome() -> None:
    won, lost, half = episode([None], 1.0), episode([None], 0.0), episode([None], 0.5)
    credit.estimate("reinforce", [won, lost, half])
    np.testing.assert_allclose([won.turns[0].advantage, lost.turns[0].advantage, half.turns[0].advantage], [0.5, -0.5, 0.0], atol=1e-12)


def test_reinforce_normalised_does_not_depend_on_the_scale_of_rewards() -> None:
    def batch(scale: float) -> list[Trajectory]:
        return [episode([0.1 * scale, 0.3 * scale], 0.7 * scale), episode([-0.2 * scale], 0.0)]

    one, ten = batch(1.0), batch(10.0)
    credit.estimate("reinforce", one, normalise=True, epsilon=0.0)
    credit.estimate("reinforce", ten, normalise=True, epsilon=0.0)
    np.testing.assert_allclose(advantages(one[0]), advantages(ten[0]))
    weighted_square = np.mean([np.mean(np.square(advantages(trajectory))) for trajectory in one])
    np.testing.assert_allclose(weighted_square, 1.0)


def test_reinforce_of_equal_returns_is_zero_even_when_normalised() -> None:
    batch = [episode([None], 1.0), episode([None], 1.0)]
    credit.estimate("reinforce", batch, normalise=True)
    assert [advantages(one) for one in batch] == [[0.0], [0.0]]


# --- rules for all --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(credit.ESTIMATORS))
def test_masked_trajectories_take_no_part(name: str) -> None:
    batch = [episode([0.5, None, 0.1], 1.0), episode([None, 0.2], 0.0)]
    alone = copy.deepcopy(batch)
    bad = episode([100.0, 100.0], 1.0, masked="judge failed")
    bad.turns[0].advantage = 5.0
    credit.estimate(name, alone)
    credit.estimate(name, [batch[0], bad, batch[1]])
    assert advantages(bad) == [None, None]
    assert [advantages(one) for one in batch] == [advantages(one) for one in alone]


@pytest.mark.parametrize("name", sorted(credit.ESTIMATORS))
def test_empty_batches_and_episodes_without_turns(name: str) -> None:
    credit.estimate(name, [])
    credit.estimate(name, [episode([], 1.0)])
    one = episode([None], 1.0)
    credit.estimate(name, [episode([], 1.0), one])
    assert one.turns[0].advantage is not None


def test_cloning_is_one_everywhere() -> None:
    one = episode([None, 1.0], 0.0)
    credit.estimate("bc", [one])
    assert advantages(one) == [1.0, 1.0]


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        credit.estimate("reinforce", [episode([float("nan")], 1.0)])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'reinforce'"):
        credit.estimate("reinforse", [])
    with pytest.raises(UserError, match="baseline"):
        credit.estimate("reinforce", [], baseline="mean")


# --- the control ----------------------------------------------------------------------------------------------------------------------------


def numbered(lengths: list[int]) -> tuple[list[Trajectory], dict[float, int]]:
    """Episodes whose advantages are all different, and which episode each advantage belongs to."""
    batch = [episode([None] * length, 0.0) for length in lengths]
    owner: dict[float, int] = {}
    for index, one in enumerate(batch):
        for turn in one.turns:
            turn.advantage = float(len(owner))
            owner[turn.advantage] = index
    return batch, owner


@pytest.mark.parametrize("lengths", [[3, 3], [1, 2, 3, 4, 5, 6], [24, 5, 7, 24, 11], [1, 1, 2]])
def test_permutation_moves_every_advantage_to_another_episode(lengths: list[int]) -> None:
    for seed in range(5):
        batch, owner = numbered(lengths)
        assert credit.permute_advantages(batch, seed) == 0
        values = [turn.advantage for one in batch for turn in one.turns]
        assert sorted(values) == sorted(owner)
        assert all(owner[turn.advantage] != index for index, one in enumerate(batch) for turn in one.turns)


def test_permutation_is_a_function_of_the_seed() -> None:
    results = []
    for seed in (1, 1, 2):
        batch, _ = numbered([4, 6, 5, 3])
        credit.permute_advantages(batch, seed)
        results.append([advantages(one) for one in batch])
    assert results[0] == results[1] != results[2]


def test_permutation_counts_what_cannot_move_and_leaves_masked_ones_alone() -> None:
    batch, owner = numbered([7, 2])
    assert credit.permute_advantages(batch, 0) == 5  # 7 turns, of which only 2 can get the other episode's
    assert sorted(turn.advantage for one in batch for turn in one.turns) == sorted(owner)
    masked = episode([None], 0.0, masked="why")
    assert credit.permute_advantages([masked], 0) == 0
    assert advantages(masked) == [None]


def test_permutation_breaks_the_tie_between_outcome_and_advantage() -> None:
    random = np.random.default_rng(0)
    batch = [episode([None] * int(random.integers(3, 12)), float(random.integers(0, 2))) for _ in range(200)]
    credit.estimate("reinforce", batch, discount=1.0)

    def correlation() -> float:
        pairs = [(one.outcome, turn.advantage) for one in batch for turn in one.turns]
        return float(np.corrcoef(np.array(pairs).T)[0, 1])

    assert correlation() > 0.99
    credit.permute_advantages(batch, 0)
    assert abs(correlation()) < 0.2


def test_statistics() -> None:
    batch = [episode([None] * 2, 0.0), episode([None], 0.0, masked="why"), episode([None] * 2, 0.0)]
    for turn, advantage in zip(batch[0].turns + batch[2].turns, [0.0, 1.0, -1.0, 2.0], strict=True):
        turn.advantage = advantage
    found = credit.advantage_statistics(batch)
    assert found["nonzero_share"] == 0.75 and found["negative_share"] == 0.25 and found["mean"] == 0.5
    assert found["min"] == -1.0 and found["max"] == 2.0 and found["masked"] == 1.0
    np.testing.assert_allclose(found["std"], np.std([0.0, 1.0, -1.0, 2.0]))
    assert credit.advantage_statistics([])["mean"] == 0.0
