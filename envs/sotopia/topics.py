"""Conversations that a rule scores by what was talked about: a proxy, where an evaluator with judgement would be better.

Each seat holds topics, things it can tell, and has wishes: to *learn* something (the other seat says one of the words), to *tell* something
(it says one of the words itself), or to *keep* something (it never says any of them). The proxy's goal score is

    goal_s = 10 · (fulfilled wishes) / (wishes)

where a kept silence counts only if the conversation came to at least KEPT_TURNS turns, so that walking out is no way to keep a secret. Words are
found as whole words in `speak` actions, whatever is said around them: nothing tells a denial from an admission, which is why this is a proxy.
"""

from __future__ import annotations

import dataclasses
import re

from envs.sotopia.action import NONE, SPEAK, Action

LEARN, TELL, KEEP = "learn", "tell", "keep"
KEPT_TURNS = 6


@dataclasses.dataclass(frozen=True)
class Topic:
    """Something a seat can tell. name: how it is asked for, one lower-case word; tells: the sentence; guarded: told only when asked twice."""

    name: str
    tells: str
    guarded: bool = False


@dataclasses.dataclass(frozen=True)
class Wish:
    """kind: LEARN, TELL or KEEP; topic: its name; words: any of them is the thing said."""

    kind: str
    topic: str
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TopicSide:
    """One seat's private half."""

    topics: tuple[Topic, ...]
    wishes: tuple[Wish, ...]


@dataclasses.dataclass(frozen=True)
class Topics:
    sides: tuple[TopicSide, TopicSide]

    def goal(self, seat: int, history: list[tuple[int, Action]]) -> float:
        """The proxy's goal score in [0, 10]."""
        wishes = self.sides[seat].wishes
        return 10.0 * sum(fulfilled(wish, seat, history) for wish in wishes) / len(wishes)


def fulfilled(wish: Wish, seat: int, history: list[tuple[int, Action]] | tuple[tuple[int, Action], ...]) -> bool:
    """Whether a seat's wish is fulfilled as the conversation stands."""
    if wish.kind == LEARN:
        return said(wish.words, 1 - seat, history)
    if wish.kind == TELL:
        return said(wish.words, seat, history)
    played = sum(action.action_type != NONE for _, action in history)
    return played >= KEPT_TURNS and not said(wish.words, seat, history)


def said(words: tuple[str, ...], seat: int, history: list[tuple[int, Action]] | tuple[tuple[int, Action], ...]) -> bool:
    """Whether a seat has said one of the words."""
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    return any(speaker == seat and action.action_type == SPEAK and pattern.search(action.argument) for speaker, action in history)
