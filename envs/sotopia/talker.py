"""The scripted negotiator where there is nothing to bargain over: it asks, tells and keeps silent, as the words say.

With a strategy (of which ten words count; advice.py) it takes the first of these that applies: "leave", "walk away", … leaves; a topic's name after
"ask" ("ask about the party") asks for it; the name of a topic of its own after "tell", "mention", "say", "admit" or "share" tells it; where it has no
topics at all it says the strategist's words themselves. Without a reading it does as unadvised: it tells what it was asked (something guarded
only the second time it is asked), else passes the time, and it never asks.
"""

from __future__ import annotations

import random
import re

from envs.sotopia import advice
from envs.sotopia.action import LEAVE, SPEAK, Action
from envs.sotopia.agreement import sentences
from envs.sotopia.scenario import View

_ASK, _TELL = frozenset(("ask", "inquire", "question", "learn")), frozenset(("tell", "mention", "say", "admit", "share", "reveal"))
_LEADING_UP = frozenset(("about", "for", "the", "their", "again", "them", "of", "once", "more"))
_ASKED = re.compile(r"may i ask about the ([a-z]+)\?")
_SMALL_TALK = ("I see.", "That is good to hear.", "Let us think about it.", "It has been a long day.", "Quite so.", "Who knows.")
_EVASION = "I would rather not speak of that."


def choose(strategy: str | None, view: View, seed: int) -> Action:
    """The next action of the view's seat. Never raises on any text."""
    said = advice.words_of(strategy) if strategy else []
    topics = {topic.name: topic for topic in view.topics.topics} if view.topics else {}
    if said:
        if advice.LEAVE in advice.read(strategy, ()).moves:
            return Action(LEAVE)
        if view.topics is None:
            return Action(SPEAK, " ".join(said))
        for place, word in enumerate(said):
            if word in _ASK and (named := _topic_after(said, place)):
                return Action(SPEAK, f"May I ask about the {named}?")
            if word in _TELL and (own := next((name for name in said[place + 1 :] if name in topics), None)):
                return Action(SPEAK, topics[own].tells)
    asked = [name for seat, action in view.history if seat != view.seat for name in asked_in(action)]
    if view.history and asked_in(view.history[-1][1]) and asked and (topic := topics.get(asked[-1])) is not None:
        return Action(SPEAK, _EVASION if topic.guarded and asked.count(topic.name) < 2 else topic.tells)
    return Action(SPEAK, random.Random(f"{seed}/{view.turn}").choice(_SMALL_TALK))


def _topic_after(said: list[str], place: int) -> str | None:
    """The first word after "ask" that does not only lead up to something: "ask them about the party" asks for the party."""
    return next((word for word in said[place + 1 :] if word.isalpha() and word not in _LEADING_UP), None)


def asked_in(action: Action) -> list[str]:
    """The topics that an action asks for."""
    if action.action_type != SPEAK:
        return []
    return [match[1] for sentence in sentences(action.argument) if (match := _ASKED.fullmatch(sentence))]
