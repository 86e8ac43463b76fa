"""What is read in a strategy's words, against hand-made cases of the rule."""

from __future__ import annotations

import random
import time

import pytest

from envs.sotopia.advice import MAX_WORDS, Advice, read, words_of
from envs.sotopia.bargaining import Issue

PRICE = (Issue("price", ("$40", "$44", "$48", "$52")),)
FLAT = (Issue("rent", ("$600", "$650")), Issue("key", ("monday", "friday")), Issue("parking", ("no", "yes")))


def advice(*moves: str, wanted=(), keep=(), give=()) -> Advice:
    return Advice(frozenset(moves), tuple(wanted), frozenset(keep), frozenset(give))


@pytest.mark.parametrize(
    ("strategy", "issues", "expected"),
    [
        ("Strategy: accept their offer.", PRICE, advice("accept")),
        ("take the deal", PRICE, advice("accept")),
        ("Do not accept yet", PRICE, advice("hold")),
        ("don\u2019t give in", PRICE, advice("hold")),
        ("leave now", PRICE, advice("leave")),
        ("never leave", PRICE, advice("hold")),
        ("be honest about your limit", PRICE, advice("reveal")),
        ("ask what matters to them", FLAT, advice("ask")),
        ("Aim high.", PRICE, advice("high")),
        ("stay firm", PRICE, advice("hold")),
        ("concede a little", PRICE, advice("concede", "little")),
        ("meet halfway", PRICE, advice("halfway")),
        ("hold at 48", PRICE, advice("hold", wanted=[(0, 2)])),
        ("ask for $47", PRICE, advice(wanted=[(0, 2)])),  # the nearest price
        ("ask for 470", PRICE, advice()),  # no price here
        ("offer price $44", PRICE, advice(wanted=[(0, 1)])),
        ("offer rent $650, key friday, parking yes", FLAT, advice(wanted=[(0, 1), (1, 1), (2, 1)])),
        ("move to friday", FLAT, advice(wanted=[(1, 1)])),
        ("the key on friday", FLAT, advice(wanted=[(1, 1)])),
        ("keep the rent, give them the parking", FLAT, advice(keep=[0], give=[2])),
        ("concede on the key", FLAT, advice(give=[1])),
        ("trade parking for rent", FLAT, advice("trade", keep=[0], give=[2])),
        ("ask for parking in return", FLAT, advice("trade", keep=[2])),
        ("do what seems right", PRICE, advice()),
        ("keep talking and be nice", FLAT, advice()),
        ("", PRICE, advice()),
        ("one two three four five six seven eight nine ten accept", PRICE, advice()),  # the eleventh word
        ("Strategy: one two three four five six seven eight nine accept", PRICE, advice("accept")),
    ],
)
def test_what_is_read(strategy, issues, expected):
    assert read(strategy, issues) == expected
    assert bool(expected) == (expected != Advice())


def test_the_first_level_counts():
    assert read("concede a little", PRICE).level == "little"
    assert read("hold, then compromise", PRICE).level == "hold"
    assert read("nothing", PRICE).level is None


def test_any_text_is_read():
    rng = random.Random(0)
    started = time.process_time()
    for text in ["x" * 5_000_000, "accept " * 1_000_000, "\x00\ud800", "9" * 100_000, "$" * 10_000]:
        assert len(words_of(text)) <= MAX_WORDS
        read(text, PRICE)
    for _ in range(500):
        read("".join(chr(rng.randrange(0x250)) for _ in range(60)), FLAT)
    assert time.process_time() - started < 2
