"""Intervals and p-values against hand calculations, the normal approximation, and counting all cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from epo_jax.evaluation import RESAMPLES, estimate, main_figures, mean_outcome, paired_difference, paired_test, report, values_of
from epo_jax.trajectory import Trajectory, Turn


def test_interval_is_that_of_a_proportion():
    result = estimate([1.0] * 60 + [0.0] * 40)
    assert result.mean == pytest.approx(0.6) and result.n == 100
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)  # normal approximation
    assert result.low == pytest.approx(0.6 - half, abs=0.015)
    assert result.high == pytest.approx(0.6 + half, abs=0.015)


def test_an_interval_over_many_tasks_is_drawn_in_parts():
    """The parts together are the draws that one table of them would be, which may not fit into the memory."""
    sample = np.random.default_rng(3).random(301)  # 3,322 draws at once, which does not divide 10,000
    draws = np.random.default_rng(0).integers(0, sample.size, (RESAMPLES, sample.size))
    low, high = np.percentile(sample[draws].mean(axis=1), [2.5, 97.5])
    assert (estimate(sample).low, estimate(sample).high) == (low, high)


def test_difference_is_paired_by_task():
    before = {"a": 0.0, "b": 1.0, "c": 0.0, "only before": 1.0}
    after = {"b": 1.0, "a": 1.0, "c": 0.0, "only after": 0.0}
    assert paired_difference(before, after).mean == pytest.approx(1 / 3)
    assert paired_difference(before, after).n == 3
    same = paired_difference(before, before)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)  # no noise from tasks being unlike each other


def test_masked_episodes_are_no_failures():
    played = [Trajectory("alfworld", "a", success=True), Trajectory("alfworld", "b", masked="actor failed")]
    assert values_of(played, "alfworld", "success") == {"a": 1.0}
    with pytest.raises(ValueError):
        estimate([])


def test_each_environment_is_reported_by_its_own_figures():
    """Task ids may be the same in two environments; a purchase is no success; where reward is success it is told once."""

    def played(bought, reward):
        return [
            Trajectory("alfworld", "1", success=True, outcome=1.0),
            Trajectory("webshop", "1", success=reward == 1.0, outcome=reward, extra={"bought": bought}),
        ]

    before, now = played(False, 0.0), played(True, 0.25)
    assert values_of(now, "webshop", "reward") == {"1": 0.25} and values_of(now, "alfworld", "bought") == {}
    assert report(now, [], "alfworld") == "success 100.0% [100.0%, 100.0%]; n = 1"
    told = report(now, before, "webshop")
    assert "success 0.0% [0.0%, 0.0%], paired difference to before +0.0 points" in told
    assert "reward 25.0% [25.0%, 25.0%], paired difference to before +25.0 points" in told
    assert "bought 100.0% [100.0%, 100.0%], paired difference to before +100.0 points [+100.0, +100.0]; n = 1" in told
    assert report(now, [], "sotopia") == ""


def test_main_figures_are_of_each_environment_and_every_environment_weighs_alike_in_the_mean_outcome():
    def talked(*outcomes):
        return [Trajectory("sotopia", str(task), outcome=outcome, success=outcome >= 0.5) for task, outcome in enumerate(outcomes)]

    failed = Trajectory("webshop", "2", outcome=1.0, masked="the actor failed")
    everything = [*talked(0.75, 0.25), Trajectory("webshop", "1", outcome=0.1), failed]
    figures = main_figures(everything)
    assert {name: (figure.mean, figure.n) for name, figure in figures.items()} == {"sotopia": (5.0, 2), "webshop": (0.1, 1)}
    assert mean_outcome(everything) == pytest.approx(0.3)
    assert main_figures([failed]) == {} and math.isnan(mean_outcome([failed]))


def test_repeats_of_a_task_are_one_value_and_no_strategy_has_no_length():
    def played(task, won, *lengths, masked=None):
        turns = [Turn(tokens=[7] * length, logprobs=[0.0] * length) for length in lengths]
        return Trajectory("alfworld", task, success=won, outcome=float(won), turns=turns, masked=masked)

    several = [played("a", True, 3, 5), played("a", False, 1), played("b", True, 0, 0, 0), played("b", False, 9, masked="actor failed")]
    assert values_of(several, "alfworld", "success") == {"a": 0.5, "b": 1.0}  # b's failed episode is no failure
    assert values_of(several, "alfworld", "turns") == {"a": 1.5, "b": 3.0}
    assert values_of(several, "alfworld", "strategy_tokens") == {"a": 2.5}  # (4 + 1) / 2; b was played without a strategist


# --- SOTOPIA ----------------------------------------------------------------------------------------------------------------

SCORES = {"believability": 8, "relationship": 1, "knowledge": 3, "secret": -2, "social_rules": 0, "financial_and_material_benefits": -1, "goal": 5}


def spoken(task, goal, *, scored=True, masked=None, **more):
    """One seat's trajectory of "combination/seat"."""
    scores = {"scores": SCORES | {"goal": goal}} if scored else {}
    return Trajectory("sotopia", task, seat=task[-1], outcome=goal / 10, success=goal >= 5, masked=masked, extra=scores | more)


def test_sotopias_figures_by_hand():
    played = [
        spoken("sotopia/A/0", 6), spoken("sotopia/A/1", 2), spoken("sotopia/B/0", 9), spoken("sotopia/B/1", 0, masked="evaluator openai:m: no answer"),
        spoken("generated:eval/3/0", 3, scored=False), spoken("generated:eval/3/1", 10, scored=False),
    ]  # fmt: skip
    combinations = {"sotopia/A": 4.0, "sotopia/B": 9.0, "generated:eval/3": 6.5}
    assert values_of(played, "sotopia", "goal") == combinations  # rule-scored ones too, and the masked seat is no zero
    assert values_of(played, "sotopia", "success") == {"sotopia/A": 0.5, "sotopia/B": 1.0, "generated:eval/3": 0.5}
    assert values_of(played, "sotopia", "secret") == {"sotopia/A": -2.0, "sotopia/B": -2.0}
    # 8 + 1 + 3 - 2 + 0 - 1 = 9 without the goal
    assert values_of(played, "sotopia", "overall") == {"sotopia/A": pytest.approx((15 / 7 + 11 / 7) / 2), "sotopia/B": pytest.approx(18 / 7)}
    assert values_of(played, "sotopia", "reward") == {}
    assert values_of([Trajectory("alfworld", "a", outcome=1.0)], "alfworld", "goal") == values_of([], "sotopia", "overall") == {}


def test_a_conversations_two_seats_are_drawn_together():
    """Opposite seats, of which one gets what the other loses: every combination is worth 5, whichever of them are drawn."""
    zero_sum = [spoken(f"sotopia/{number}/{seat}", 10 - number if seat else number) for number in range(1, 11) for seat in (0, 1)]
    result = estimate(list(values_of(zero_sum, "sotopia", "goal").values()))
    assert (result.low, result.mean, result.high, result.n) == (5.0, 5.0, 5.0, 10)
    # Alike seats: as wide as one seat alone, and not narrower by the root of two, as twice as many independent values would be.
    alike = [spoken(f"sotopia/{number}/{seat}", number % 11) for number in range(110) for seat in (0, 1)]
    both, one = (estimate(list(values_of(each, "sotopia", "goal").values())) for each in (alike, alike[::2]))
    assert both == one and both.n == 110
    assert (both.high - both.low) / 2 == pytest.approx(1.96 * math.sqrt(10.0 / 110), rel=0.05)  # the variance of 0 … 10 is 10


def test_sotopia_is_reported_by_its_goal_score():
    before, now = [spoken("sotopia/A/0", 4), spoken("sotopia/B/0", 4)], [spoken("sotopia/A/0", 6), spoken("sotopia/B/0", 6)]
    told = report(now, before, "sotopia")
    assert told.startswith("success 100.0% [100.0%, 100.0%], paired difference to before +100.0 points") and "reward" not in told
    assert "; goal 6.00 [6.00, 6.00], paired difference to before +2.0 [+2.0, +2.0]" in told
    assert told.endswith("; overall 2.14 [2.14, 2.14], paired difference to before +0.3 [+0.3, +0.3]; n = 2")


def tasks(values):
    return {str(number): float(value) for number, value in enumerate(values)}


@pytest.mark.parametrize("gained, lost, same", [(5, 1, 10), (9, 0, 0), (0, 3, 2), (4, 4, 4), (1, 0, 7), (0, 0, 6)])
def test_p_of_successes_is_mcnemars(gained, lost, same):
    """By hand: among the tasks that changed, either side is as likely as in tosses of a fair coin."""
    before, after = tasks([0] * gained + [1] * lost + [1] * same), tasks([1] * gained + [0] * lost + [1] * same)
    changed, extreme = gained + lost, min(gained, lost)
    tail = sum(math.comb(changed, count) for count in range(extreme + 1)) / 2**changed
    found = paired_test(before, after)
    assert found.name == "McNemar, exact" and found.p == pytest.approx(min(1.0, 2 * tail))
    assert paired_test(after, before).p == pytest.approx(found.p)


def test_p_of_few_rewards_counts_every_sign():
    values = np.random.default_rng(5)
    before, after = values.random(9), values.random(9) + 0.2
    differences = after - before
    means = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean(np.asarray(means) >= abs(differences.sum()) - 1e-12)
    found = paired_test(tasks(before), tasks(after) | {"only after": 5.0})
    assert found.name == "paired permutation, exact" and found.p == pytest.approx(expected)
    assert paired_test(tasks([0.5, 0.25]), tasks([0.5, 0.5])).p == paired_test(tasks([0.5]), tasks([0.5])).p == 1.0


def test_p_of_many_rewards_is_near_the_t_tests():
    values = np.random.default_rng(6)
    before = values.random(300)
    after = before + values.normal(0.02, 0.2, 300)
    found = paired_test(tasks(before), tasks(after))
    assert found.name == f"paired permutation, {RESAMPLES} draws"
    assert found.p == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02) and 0.01 < found.p < 0.99
    assert found == paired_test(tasks(before), tasks(after))  # the same draws every time
