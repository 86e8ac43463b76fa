"""The expert and its words: better than saying nothing, worse the vaguer they are, never too long."""

from __future__ import annotations

import random
import statistics

import pytest

from envs.sotopia import generator
from envs.sotopia.advice import MAX_WORDS, read, words_of
from envs.sotopia.agreement import read_deal
from envs.sotopia.expert import Decision, decide
from envs.sotopia.phrases import phrase
from envs.speaker import MIXED, STYLES


def advisor(style: str):
    rng = random.Random(0)
    return lambda view: phrase(decide(view), style or rng.choices(STYLES, [MIXED[name] for name in STYLES])[0], rng)


def test_precise_words_earn_more_than_vague_ones(play, games):
    means = {
        style or "mixed": statistics.fmean(c.scenario.game.goal(seat, play(c, seat, advisor(style)).deal) for c, seat in games)
        for style in (*STYLES, "")
    }
    assert means["exact"] > 5 > means["mixed"] > means["vague"] + 1
    assert min(means["exact"], means["plain"]) > means["loose"] > means["vague"] + 1


def test_strategies_are_short_and_say_what_was_decided(play, games):
    """Each is at most ten words; the exact ones name the very deal, the vague ones nothing."""
    for combination, seat in games:
        issues = combination.scenario.game.issues

        def advise(view, issues=issues):
            decision = decide(view)
            for style in STYLES:
                strategy = phrase(decision, style, random.Random(view.turn))
                assert strategy.startswith("Strategy: ") and len(strategy.split()) - 1 <= MAX_WORDS and len(words_of(strategy)) <= MAX_WORDS
                assert bool(read(strategy, issues)) == (style != "vague")
            exact = phrase(decision, "exact", random.Random(0))
            if decision.purpose != "accept":
                deal = read_deal(issues, exact.removeprefix("Strategy: offer ").rstrip("."))
                assert read(exact, issues).wanted == tuple(enumerate(deal)) and view.side.share(deal) > 0
            return exact

        play(combination, seat, advise)


def test_the_expert_sees_only_its_seat(games):
    """Its decision is a function of the view, which holds nothing of the other side (test_sotopia_views.py)."""
    for combination, seat in games[:34]:
        view = combination.view_of(seat, ())
        assert decide(view) == decide(combination.view_of(seat, ())) and decide(view).purpose == "open"


def test_where_nothing_can_be_scored_it_listens():
    talk = next(c for c in generator.scenarios() if not c.scenario.game and not c.scenario.topics)
    assert decide(talk.view_of(0)) == Decision("listen")


@pytest.mark.parametrize("style", STYLES)
def test_every_decision_has_words(style):
    for purpose in ("open", "give", "hold", "accept", "ask", "tell", "listen"):
        assert "{" not in phrase(Decision(purpose, "price $5", "price $5", "cake"), style, random.Random(0))
