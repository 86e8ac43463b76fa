"""Who is met: proportions, determinism, and which round "earlier" and "untrained" are."""

from __future__ import annotations

from collections import Counter

import pytest

from epo_jax.errors import UserError
from epo_jax.rollout.opponents import check_weights, drawn, earlier, round_of

WEIGHTS = {"self": 2.0, "scripted": 1.0, "untrained": 0.0, "earlier": 1.0, "none": 0.0}


def meet(weights, round, count=2000, memory=3):
    return [drawn(weights, seed=4, round=round, index=index, memory=memory) for index in range(count)]


def test_opponents_come_in_their_proportions_and_the_same_ones_every_time():
    met = meet(WEIGHTS, round=5)
    counts = Counter(met)
    earlier_ones = [name for name in counts if round_of(name) is not None]
    assert len(earlier_ones) == 1 and round_of(earlier_ones[0]) in (2, 3, 4)
    assert set(counts) == {"self", "scripted", earlier_ones[0]}
    assert abs(counts["self"] - 1000) < 100 and abs(counts["scripted"] - 500) < 100
    assert met == meet(WEIGHTS, round=5) != meet(WEIGHTS, round=6)


def test_in_the_first_round_earlier_ones_are_the_strategist_itself():
    assert set(meet({"untrained": 1.0, "earlier": 1.0}, round=0, count=50)) == {"self"}
    assert set(meet({"untrained": 1.0}, round=3, count=50)) == {"round 0"}


def test_earlier_reaches_back_as_far_as_the_memory():
    assert {earlier(seed, 6, 3) for seed in range(60)} == {3, 4, 5}
    assert {earlier(seed, 2, 3) for seed in range(60)} == {0, 1}


@pytest.mark.parametrize(
    "weights, words",
    [({"self": 0.0}, "every weight"), ({"self": -1.0}, "is -1.0"), ({"self": float("nan")}, "is nan"), ({"somebody": 1.0}, "unknown")],
)
def test_weights_that_make_no_sense_are_refused(weights, words):
    with pytest.raises(UserError, match=words):
        check_weights(weights)


@pytest.mark.parametrize("name, round", [("round 12", 12), ("self", None), ("round x", None), ("untrained", None)])
def test_a_name_tells_its_round(name, round):
    assert round_of(name) == round
