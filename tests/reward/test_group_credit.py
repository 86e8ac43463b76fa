"""Group estimators by hand calculation, and what every one of them must keep."""

from __future__ import annotations

import numpy as np
import pytest

from epo_jax.reward import credit
from epo_jax.reward.group_credit import GROUP_ESTIMATORS, groups_of
from epo_jax.trajectory import Trajectory, Turn


def episode(task: str, outcome: float, states: str = "ab", masked: str | None = None, environment: str = "test") -> Trajectory:
    """An episode that goes through `states`, one turn in each."""
    turns = [Turn(observation=following) for following in [*states[1:], "end"]]
    return Trajectory(environment, task, first_observation=states[0], turns=turns, outcome=outcome, masked=masked)


def advantages(trajectory: Trajectory) -> list[float | None]:
    return [turn.advantage for turn in trajectory.turns]


def test_grpo_by_hand() -> None:
    """Outcomes 1, 0, 0, 0: mean 1/4, standard deviation sqrt(3)/4."""
    group = [episode("t", outcome) for outcome in (1.0, 0.0, 0.0, 0.0)]
    credit.estimate("grpo", group)
    np.testing.assert_allclose(advantages(group[0]), [np.sqrt(3.0)] * 2, rtol=1e-5)
    np.testing.assert_allclose(advantages(group[3]), [-1 / np.sqrt(3.0)] * 2, rtol=1e-5)


def test_dr_grpo_and_rloo_by_hand() -> None:
    group = [episode("t", outcome) for outcome in (1.0, 0.5, 0.0)]
    credit.estimate("dr_grpo", group)
    assert [advantages(each)[0] for each in group] == [0.5, 0.0, -0.5]
    credit.estimate("rloo", group)  # against the mean of the others: 1 - 1/4, 1/2 - 1/2, 0 - 3/4
    np.testing.assert_allclose([advantages(each)[0] for each in group], [0.75, 0.0, -0.75], rtol=1e-12)


def test_gigpo_by_hand() -> None:
    """Both begin in state a; the winner goes by b, the other one by c and back to a, where it ends: three turns spoken in a."""
    winner, loser = episode("t", 1.0, "ab"), episode("t", 0.0, "aca")
    credit.estimate("gigpo", [winner, loser], discount=0.5, normalise=False)
    # Episodes: ±1/2. Returns in a: 1/2 (winner), 0, 0; their mean is 1/6. b and c were met once.
    np.testing.assert_allclose(advantages(winner), [0.5 + 1 / 3, 0.5], rtol=1e-12)
    np.testing.assert_allclose(advantages(loser), [-0.5 - 1 / 6, -0.5, -0.5 - 1 / 6], rtol=1e-12)
    credit.estimate("gigpo", [winner, loser], discount=0.5)
    deviation = np.sqrt(((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / 3)
    np.testing.assert_allclose(advantages(winner), [1 + (1 / 3) / deviation, 1.0], rtol=1e-5)


def test_gigpo_with_anchors_off_is_grpo() -> None:
    one, other = ([episode("t", outcome) for outcome in (1.0, 0.25, 0.0)] for _ in range(2))
    credit.estimate("grpo", one)
    credit.estimate("gigpo", other, anchor_weight=0.0)
    assert [advantages(each) for each in one] == [advantages(each) for each in other]


@pytest.mark.parametrize("normalise", [False, True])
def test_both_parts_of_gigpo_are_centred(normalise: bool) -> None:
    """Over a group's episodes what they are credited as episodes; over the turns spoken in one state, however often, what those are credited apart."""
    played = [episode("t", outcome, states) for outcome, states in ((1.0, "ab"), (0.0, "aca"), (0.5, "bacab"), (0.0, "a"))]
    credit.estimate("gigpo", played, anchor_weight=0.0, normalise=normalise)
    whole = [advantages(each) for each in played]
    assert sum(each[0] for each in whole) == pytest.approx(0.0, abs=1e-12) and all(len(set(each)) == 1 for each in whole)
    credit.estimate("gigpo", played, anchor_weight=2.0, discount=0.7, normalise=normalise)
    apart: dict[str, list[float]] = {}
    for one, before, states in zip(played, whole, ("ab", "aca", "bacab", "a"), strict=True):
        for state, with_anchor, without in zip(states, advantages(one), before, strict=True):
            apart.setdefault(state, []).append(with_anchor - without)
    assert {state: len(values) for state, values in apart.items()} == {"a": 6, "b": 3, "c": 2}
    for values in apart.values():
        assert sum(values) == pytest.approx(0.0, abs=1e-12) and max(values) > 0.1


def test_groups_are_tasks_of_one_environment() -> None:
    played = [episode("1", 1.0), episode("2", 0.0), episode("1", 0.0, environment="other"), episode("1", 0.0)]
    assert [[played.index(each) for each in group] for group in groups_of(played)] == [[0, 3], [1], [2]]


@pytest.mark.parametrize("name", GROUP_ESTIMATORS)
def test_what_every_group_estimator_keeps(name: str) -> None:
    """Each group's mean is 0; a task's difficulty and the order do not matter; masked and lonely episodes neither teach nor learn."""
    rng = np.random.default_rng(0)
    outcomes = rng.random((5, 4))
    easy = [episode(str(task), float(outcome), "abc"[: 1 + column % 3]) for task, row in enumerate(outcomes) for column, outcome in enumerate(row)]
    credit.estimate(name, easy)
    for group in groups_of(easy):
        assert sum(advantages(each)[0] for each in group) == pytest.approx(0.0, abs=1e-9)
    before = [advantages(each) for each in easy]
    spoiled = [*easy[::-1], episode("0", 1.0, masked="judge failed"), episode("alone", 1.0)]
    credit.estimate(name, spoiled)
    np.testing.assert_allclose(np.concatenate([advantages(each) for each in easy]), np.concatenate(before), atol=1e-12)
    assert advantages(spoiled[-2]) == [None, None] and advantages(spoiled[-1]) == [0.0, 0.0]
    shifted = [episode(each.task_id, each.outcome + 3.0, "abc"[: len(each.turns)]) for each in easy]
    if name != "gigpo":  # whose returns are discounted, so that a constant reaches early turns weaker
        credit.estimate(name, shifted)
        np.testing.assert_allclose(np.concatenate([advantages(each) for each in shifted]), np.concatenate(before), atol=1e-9)


def test_a_configuration_gives_an_estimator_what_it_takes() -> None:
    settings = {"estimator": "gigpo", "discount": 0.5, "process_weight": 2.0, "normalise": False, "anchor_weight": 3.0, "permute": True}
    assert credit.options_of("gigpo", settings) == {"discount": 0.5, "process_weight": 2.0, "normalise": False, "anchor_weight": 3.0}
    assert credit.options_of("rloo", settings) == {"process_weight": 2.0}
    assert credit.options_of("epo", settings) == {"discount": 0.5}


@pytest.mark.parametrize("name", GROUP_ESTIMATORS)
def test_equal_episodes_give_exactly_zero(name: str) -> None:
    group = [episode("t", 0.1) for _ in range(3)]  # 0.1 three times: their mean is not 0.1 in floating point
    credit.estimate(name, group)
    assert {value for each in group for value in advantages(each)} == {0.0}
