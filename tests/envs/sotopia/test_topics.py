"""Conversations without a game: the proxy's score by hand, and what a talker makes of words."""

from __future__ import annotations

import random

import pytest

from envs.sotopia import generator
from envs.sotopia.action import Action
from envs.sotopia.engine import Conversation
from envs.sotopia.expert import decide
from envs.sotopia.negotiator import Negotiator
from envs.sotopia.phrases import phrase
from envs.sotopia.topics import KEEP, LEARN, TELL, Topics, TopicSide, Wish

TOPICS = Topics(
    (
        TopicSide((), (Wish(LEARN, "day", ("thursday", "the fourth")), Wish(KEEP, "party", ("party",)))),
        TopicSide((), (Wish(TELL, "cake", ("cake",)),)),
    )
)


def history(*speeches: str | Action) -> list[tuple[int, Action]]:
    return [(n % 2, speech if isinstance(speech, Action) else Action("speak", speech)) for n, speech in enumerate(speeches)]


@pytest.mark.parametrize(
    ("speeches", "first", "second"),
    [
        ((), 0, 0),
        (("Hi.", "On Thursday.") * 3, 10, 0),
        (("Hi.", "On THE FOURTH, with cake!"), 5, 10),  # too short for a silence to count
        (("Thursday?", "Hi.") * 3, 5, 0),  # one's own words teach nothing
        (("Your party.", "Thursdays are bad.", "x", "Pancakes.", "x", "x"), 0, 0),  # whole words only
        (("x", Action("action", "Thursday, cake")) * 3, 5, 0),
        (("x", Action("none")) * 6, 5, 0),
        (("x", Action("none")) * 5, 0, 0),
    ],
)
def test_the_proxy(speeches, first, second):
    assert [TOPICS.goal(seat, history(*speeches)) for seat in (0, 1)] == [first, second]


def talk(codename: str):
    return next(combination for combination in generator.scenarios() if combination.scenario.codename == codename)


def answer(codename: str, strategy: str | None, *speeches: str) -> Action:
    conversation = Conversation(talk(codename))
    for seat, action in history(*speeches):
        conversation.act(seat, action)
    return Negotiator().choose(strategy, conversation.view(len(speeches) % 2))


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("Strategy: ask about the evening", "May I ask about the evening?"),
        ("ask them for the evening again", "May I ask about the evening?"),
        ("mention the week", "Next week is busy for me."),
        ("tell the party", "There is a party for you."),
    ],
)
def test_words_decide_what_is_asked_and_told(strategy, said):
    assert answer("surprise_party", strategy) == Action("speak", said)


def test_what_is_guarded_is_told_when_asked_twice():
    assert answer("surprise_party", "walk away") == Action("leave")
    ask = "May I ask about the spice?"
    assert answer("shared_recipe", None, ask).argument == "I would rather not speak of that."
    assert answer("shared_recipe", None, ask, "Well.", ask).argument == "The spice is sumac."
    assert answer("surprise_party", None, "May I ask about the evening?").argument == "I am free on Thursday."
    assert "sumac" not in answer("shared_recipe", None, ask, "Well.", "Fine.").argument


def test_where_there_are_no_topics_the_words_are_said():
    assert answer("late_apology", "Strategy: say that you are truly sorry") == Action("speak", "say that you are truly sorry")
    assert answer("late_apology", None).action_type == "speak"


@pytest.mark.parametrize("codename", [c.scenario.codename for c in generator.scenarios() if c.scenario.topics])
def test_the_expert_s_words_fulfil_more_than_no_words(codename, play):
    """For one seat or the other, against a partner whom nobody advises; and nothing is lost where both are advised."""

    def advise(view) -> str:
        return phrase(decide(view), "exact", random.Random(0))

    combination = talk(codename)
    topics = combination.scenario.topics
    alone = [topics.goal(seat, play(combination, seat, lambda view: None).history) for seat in (0, 1)]
    advised = [topics.goal(seat, play(combination, seat, advise).history) for seat in (0, 1)]
    assert sum(advised) > sum(alone)
    both = Conversation(combination)
    while both.turn is not None:
        view = both.view(both.turn)
        both.act(view.seat, Negotiator().choose(advise(view), view))
    assert sum(topics.goal(seat, both.history) for seat in (0, 1)) >= sum(alone)
