"""What counts as an offer and as an agreement: a strict rule over the dialogue, so that a score cannot be talked into being.

1. Only `speak` actions count; gestures and deeds promise nothing. What stands between quotation marks is somebody's words, and does not count.
2. What is left is read sentence by sentence, in lower case. A sentence that ends with "?" only asks.
3. An *offer* is a sentence "I offer X" where X names every issue of the game exactly once, each with one of its options, divided by commas or
   "and": "I offer price $45, delivery friday." In a game over one issue its name may be left out, and "$" always. Nothing else may stand in
   the sentence: "I offer price $45 if you pay first" is no offer. What is said in other sentences changes no offer.
4. An *acceptance* is the sentence "I accept", alone or with "your offer", "the offer", "the deal" or "it"; or "I accept X" with X as in an
   offer, which must be the very deal that stands. It counts only if the other seat has an offer standing.
5. A speech with two offers, or with an offer and an acceptance, is ambiguous: neither counts.
6. A seat's new offer replaces its last one; "I withdraw my offer" takes it back. The first acceptance makes the deal, and ends the game.

Three more sentences are understood, though they bind nobody: "My limit is X" (in a game over a price), "What matters most to you?", and
"The <issue> matters most to me". Reading is linear in the text; nothing that is said raises.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from envs.sotopia.action import SPEAK, Action
from envs.sotopia.bargaining import Deal, Issue

QUESTION = "What matters most to you?"

_QUOTED = re.compile(r"[\"“”„«»][^\"“”„«»]*(?:[\"“”„«»]|$)")
_SENTENCE = re.compile(r"(?:[^.!?]|\.(?=[0-9]))+[.!?]*")  # a point before a digit ends no sentence
_ACCEPT = re.compile(r"i accept(?: (?:your offer|the offer|the deal|it))?")
_DIVIDER = re.compile(r"\s*(?:,|;|\band\b)\s*")
_NUMBER = re.compile(r"[$€]\s*([0-9]+)")


def read_deal(issues: tuple[Issue, ...], text: str) -> Deal | None:
    """The deal that a text names by rule 3, without "I offer"; None if it is anything else."""
    parts = [part for part in _DIVIDER.split(_plain(text)) if part]
    chosen: dict[int, int] = {}
    if len(parts) != len(issues):
        return None
    for part in parts:
        name, _, option = part.partition(" ")
        for place, issue in enumerate(issues):
            words = option if name == issue.name else part if len(issues) == 1 else None
            if words is None:
                continue
            number = option_number(issue, words)
            if number is None or place in chosen:
                return None
            chosen[place] = number
    return tuple(chosen[place] for place in range(len(issues))) if len(chosen) == len(issues) else None


def option_number(issue: Issue, words: str) -> int | None:
    """Which option of an issue some words name, "$" or not."""
    return _options(issue).get(_plain(words))


@functools.lru_cache(maxsize=4096)
def _options(issue: Issue) -> dict[str, int]:
    return {_plain(option): number for number, option in enumerate(issue.options)}


def _plain(text: str) -> str:
    return " ".join(_NUMBER.sub(r"\1", text.lower().replace(":", " ")).split())


@dataclasses.dataclass(frozen=True)
class Heard:
    """What one speech says. accepts: "I accept" alone; accepted: the deals in sentences "I accept X"; limit, cares: an option, an issue."""

    offers: tuple[Deal, ...] = ()
    accepts: int = 0
    accepted: tuple[Deal, ...] = ()
    withdraws: bool = False
    asks: bool = False
    limit: int | None = None
    cares: int | None = None


@functools.lru_cache(maxsize=16_384)
def understand(issues: tuple[Issue, ...], speech: str) -> Heard:
    """What a speech says, by the rule at the top of this file."""
    offers: list[Deal] = []
    accepted: list[Deal] = []
    accepts, withdraws, asks = 0, False, False
    limit = cares = None
    for sentence in sentences(speech):
        if sentence.endswith("?"):
            asks |= sentence == QUESTION.lower()
            continue
        sentence = sentence.rstrip(".! ")
        if sentence.startswith("i offer "):
            deal = read_deal(issues, sentence.removeprefix("i offer "))
            offers += [] if deal is None else [deal]
        elif _ACCEPT.fullmatch(sentence):
            accepts += 1
        elif sentence.startswith("i accept "):
            deal = read_deal(issues, sentence.removeprefix("i accept "))
            accepted += [] if deal is None else [deal]
        elif sentence == "i withdraw my offer":
            withdraws = True
        elif sentence.startswith("my limit is ") and len(issues) == 1:
            deal = read_deal(issues, sentence.removeprefix("my limit is "))
            limit = limit if deal is None else deal[0]
        elif sentence.startswith("the ") and sentence.endswith(" matters most to me"):
            name = sentence.removeprefix("the ").removesuffix(" matters most to me")
            cares = next((place for place, issue in enumerate(issues) if issue.name == name), cares)
    return Heard(tuple(offers), accepts, tuple(accepted), withdraws, asks, limit, cares)


class Ledger:
    """What was offered, said and agreed so far.

    offers: of each seat in order; standing: its offer that can be accepted; limit: that it named; cares: the issue it named; asked: whether
    its last speech asked what matters; deal: what was agreed.
    """

    def __init__(self, issues: tuple[Issue, ...]) -> None:
        self.issues = issues
        self.offers: tuple[list[Deal], list[Deal]] = ([], [])
        self.standing: list[Deal | None] = [None, None]
        self.limit: list[int | None] = [None, None]
        self.cares: list[int | None] = [None, None]
        self.asked: list[bool] = [False, False]
        self.deal: Deal | None = None

    def hear(self, seat: int, action: Action) -> None:
        """Takes one turn in."""
        self.asked[seat] = False
        if action.action_type != SPEAK or self.deal is not None:
            return
        heard = understand(self.issues, action.argument)
        self.asked[seat] = heard.asks
        self.limit[seat] = self.limit[seat] if heard.limit is None else heard.limit
        self.cares[seat] = self.cares[seat] if heard.cares is None else heard.cares
        if heard.withdraws:
            self.standing[seat] = None
        if len(heard.offers) + heard.accepts + len(heard.accepted) != 1:
            return
        if heard.offers:
            self.offers[seat].append(heard.offers[0])
            self.standing[seat] = heard.offers[0]
        elif heard.accepts or heard.accepted[0] == self.standing[1 - seat]:
            self.deal = self.standing[1 - seat]


def sentences(speech: str) -> list[str]:
    """The sentences of a speech in lower case, with their end marks, without what is quoted."""
    return [found.strip() for found in _SENTENCE.findall(_QUOTED.sub(' "" ', speech).lower()) if found.strip()]


def read(issues: tuple[Issue, ...], history: tuple[tuple[int, Action], ...]) -> Ledger:
    """The ledger of a whole conversation."""
    ledger = Ledger(issues)
    for seat, action in history:
        ledger.hear(seat, action)
    return ledger
