"""Intervals against hand calculations and against the normal approximation."""

from __future__ import annotations

import math

import pytest

from epo_jax.evaluation import estimate, paired_difference, report, values_of
from epo_jax.trajectory import Trajectory


def test_interval_is_that_of_a_proportion():
    result = estimate([1.0] * 60 + [0.0] * 40)
    assert result.mean == pytest.approx(0.6) and result.n == 100
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)  # normal approximation
    assert result.low == pytest.approx(0.6 - half, abs=0.015)
    assert result.high == pytest.approx(0.6 + half, abs=0.015)


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
