"""What a strategist's words tell a scripted negotiator to do. The rule, in full:

Only the first MAX_WORDS words count, in lower case; a leading label ("Strategy:") is skipped. A move within two words after "not", "don't",
"never" or "without" is not meant; not to accept, concede or leave is to hold. Of PHRASES the words are looked up as whole phrases:

- *accept*: "accept", "agree", "take it", "take the deal", … accepts the other's offer.
- *leave*, *reveal* ("reveal", "your limit", "be honest": says one's limit), *ask* ("ask what", "find out": asks what matters most).
- how far to go: *high* ("high", "ambitious", "low", "push", …), *hold* ("hold", "firm", "insist", …), *little* ("a little", "slowly", …), *halfway*
  ("halfway", "compromise", "split", …), *concede* ("concede", "give in", "generous", …). The first of them that stands in this list counts.
- *trade* ("trade", "swap", "in return", …): of deals that are as good to oneself, the one nearest to what the other asks for.
- the name of an issue with an option ("delivery friday", "price at 45"), or an option alone that only one issue has, or a number alone where there is
  only one issue (the nearest price counts): this option is wanted.
- an issue's name after one of KEEP ("keep the rent", "ask for parking") and without an option: one's own best option is wanted; after one of YIELD
  ("give them parking"): what the other last asked for is granted. "trade A for B" yields A and keeps B.

Anything else says nothing: words in which nothing is found leave the negotiator to its plain policy.
"""

from __future__ import annotations

import dataclasses
import re

from envs.sotopia.agreement import option_number
from envs.sotopia.bargaining import Issue

MAX_WORDS = 10
_MAX_CHARACTERS = 2_000

ACCEPT, LEAVE, REVEAL, ASK, HIGH, HOLD, LITTLE, HALFWAY, CONCEDE, TRADE = (
    "accept", "leave", "reveal", "ask", "high", "hold", "little", "halfway", "concede", "trade"
)  # fmt: skip
PHRASES = {
    ACCEPT: "accept|agree|take it|take the deal|take this deal|take their offer|take the offer|say yes|close the deal|seal the deal",
    LEAVE: "leave|walk away|walk out|give up|break off|quit",
    REVEAL: "reveal|disclose|your limit|be honest|honest",
    ASK: "ask what|ask which|ask them what|ask about their|find out|what matters|learn what",
    HIGH: "high|higher|low|ambitious|ambitiously|bold|boldly|push|more|greedy|extreme",
    HOLD: "hold|firm|firmly|stand|stay|insist|repeat|refuse|reject|decline|tough|wait|patient|no concession",
    LITTLE: "little|small|slightly|slowly|bit|gradually|one step|tiny",
    HALFWAY: "halfway|half way|middle|split|compromise|between",
    CONCEDE: "concede|give in|yield|soften|generous|closer|give ground|lot",
    TRADE: "trade|swap|in return|exchange|package|trade off",
}
KEEP = ("keep", "hold", "insist on", "ask for", "want", "need", "demand", "push", "secure", "for")
YIELD = ("give them", "give", "let them have", "grant", "concede", "yield", "drop", "trade", "swap", "offer them", "give up")
LEVELS = (HIGH, HOLD, LITTLE, HALFWAY, CONCEDE)

_LABEL = re.compile(r"\s*(?:strategy|thought|action)s?\s*:", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[$€]?[0-9]+")
_NOT = frozenset(("not", "don't", "never", "dont", "without"))
_FILLERS = frozenset(("the", "a", "an", "at", "to", "of", "is", "their", "your", "my", "on"))


@dataclasses.dataclass(frozen=True)
class Advice:
    """What was found. moves: of PHRASES; wanted: issue -> option; keep, give: issues by number."""

    moves: frozenset[str] = frozenset()
    wanted: tuple[tuple[int, int], ...] = ()
    keep: frozenset[int] = frozenset()
    give: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.moves or self.wanted or self.keep or self.give)

    @property
    def level(self) -> str | None:
        """How far to go."""
        return next((level for level in LEVELS if level in self.moves), None)


def words_of(strategy: str) -> list[str]:
    """The words that count."""
    return _WORD.findall(_LABEL.sub("", strategy[:_MAX_CHARACTERS], count=1).lower().replace("’", "'"))[:MAX_WORDS]


def read(strategy: str, issues: tuple[Issue, ...]) -> Advice:
    """The advice in a strategy, by the rule at the top of this file. Never raises."""
    words = words_of(strategy)
    moves: set[str] = set()
    for place in range(len(words)):
        meant = not _NOT.intersection(words[max(0, place - 2) : place])
        for move in _moves_at(words, place):
            if meant:
                moves.add(move)
            elif move in (ACCEPT, CONCEDE, LEAVE):
                moves.add(HOLD)
    wanted, keep, give = _issues(words, issues)
    if give:  # "give them parking" concedes one issue, not everything; "give up" is also how one leaves
        moves -= {CONCEDE, LEAVE}
    return Advice(frozenset(moves), tuple(sorted(wanted.items())), frozenset(keep), frozenset(give))


def _moves_at(words: list[str], place: int) -> list[str]:
    return [
        move
        for length in (3, 2, 1)
        if place + length <= len(words)
        for move in _MOVES.get(" ".join(words[place : place + length]), ())
    ]


_MOVES: dict[str, tuple[str, ...]] = {}
for _move, _alternatives in PHRASES.items():
    for _phrase in _alternatives.split("|"):
        _MOVES[_phrase] = (*_MOVES.get(_phrase, ()), _move)


def _issues(words: list[str], issues: tuple[Issue, ...]) -> tuple[dict[int, int], set[int], set[int]]:
    """(options wanted, issues to keep, issues to give)."""
    wanted: dict[int, int] = {}
    keep: set[int] = set()
    give: set[int] = set()
    names = {issue.name: number for number, issue in enumerate(issues)}
    used: set[int] = set()
    for place, word in enumerate(words):
        number = names.get(word)
        if number is None:
            continue
        after = place + 1
        while after < len(words) and words[after] in _FILLERS:
            after += 1
        option, length = _option(issues[number], words, after)
        if option is not None:
            wanted[number] = option
            used.update(range(place, after + length))
            continue
        verb = _verb_before(words, place)
        if verb in YIELD:
            give.add(number)
        elif verb in KEEP:
            keep.add(number)
    for place in range(len(words)):
        found = [(number, option) for number, issue in enumerate(issues) if (option := _option(issue, words, place)[0]) is not None]
        if place not in used and len(found) == 1 and found[0][0] not in wanted:
            wanted[found[0][0]] = found[0][1]
            used.add(place)
    return wanted, keep - set(wanted), give - set(wanted)


def _option(issue: Issue, words: list[str], place: int) -> tuple[int | None, int]:
    """(the option that the words from `place` on name, how many words it takes). In a price the nearest one counts."""
    for length in (2, 1):
        if place + length <= len(words):
            number = option_number(issue, " ".join(words[place : place + length]))
            if number is not None:
                return number, length
    if place < len(words) and issue.options[0].startswith("$") and words[place].lstrip("$€").isdigit():
        price = int(words[place].lstrip("$€"))
        prices = [int(option[1:]) for option in issue.options]
        if prices[0] <= price <= prices[-1]:
            return min(range(len(prices)), key=lambda number: abs(prices[number] - price)), 1
    return None, 0


def _verb_before(words: list[str], place: int) -> str | None:
    """The verb of KEEP or YIELD that an issue's name at `place` belongs to: the nearest within four words, the longest that ends there."""
    for end in range(place, max(-1, place - 4), -1):
        for length in (3, 2, 1):
            phrase = " ".join(words[end - length : end]) if end - length >= 0 else ""
            if phrase in KEEP or phrase in YIELD:
                return phrase
    return None
