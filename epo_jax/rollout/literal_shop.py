"""The literal actor in a shop: which action a strategist's words choose where actions are `search[words]` and `click[what]`.

The rule, in full. `choose(strategy, admissible)` takes the first of these that applies:

1. Only the first 2,000 characters count, in lower case. A leading label ("Thought:") is skipped.
2. An admissible `click[…]` that stands in the text, brackets and all; where the page has a search bar, `search[…]` too.
3. Where the page has a search bar: the query is what stands between double quotes; else what follows the first of SEARCH_FOR, or
   where there is none the first of SEARCH, up to the end of the sentence, without leading "for", "a", "the", "some"; else the whole
   text. So "find what we need" searches for "what we need".
4. "buy now" buys.
5. A product's id, or an option's value, word for word: the longest one that is named, in words; of equally long ones the first
   named. A value of an option that is also the name of a button counts as the button.
6. On a page of hits: a place in the list ("the third", "3rd", "number 3", "last"), or "first", "top".
7. A button: whichever of BUTTON_WORDS is said first, of buttons that are there. "Search" and its like go back to the search page.
8. On a page of hits: "open", "click", "choose", "pick" or "take" alone open the first product.
9. Otherwise it only looks: "look", which changes nothing.

So "open the second product" is followed, "open one that fits" always means the first one, and "that is the one" buys nothing.
Time is linear in the strategy and in the commands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARACTERS = 2_000
NOTHING = "look"

SEARCH_FOR = ("search for", "look for", "looking for", "type", "enter")
SEARCH = ("search", "find", "need", "query")
# words -> the button they mean. Of two that begin at one place the longer one counts.
BUTTON_WORDS = {
    words: button
    for button, alternatives in {
        "buy now": "buy|purchase|order|check out|checkout",
        "back to search": "back to search|search|start over|look for|find another|new query",
        "next >": "next|more results|more products|further",
        "< prev": "back|previous|return|prev",
        "description": "description|describe",
        "features": "features|feature|details",
        "reviews": "reviews|review",
    }.items()
    for words in alternatives.split("|")
}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_BUTTONS = frozenset(BUTTON_WORDS.values())

_LABEL = re.compile(r"\s*(?:thought|strategy|action)s?\s*:", re.IGNORECASE)
_QUOTED = re.compile(r"[\"\u201c]([^\"\u201d]+)[\"\u201d]")
_SEARCHES = [
    re.compile(rf"\b(?:{'|'.join(words)})\b\s*(?:(?:for|an?|the|some)\s+)*(.*?)(?:[.!?;](?:\s|$)|\n|$)") for words in (SEARCH_FOR, SEARCH)
]
_WORD = re.compile(r"[a-z0-9]+(?:['.-][a-z0-9]+)*|[^\w\s]")
_BRACKETS = re.compile(r"search\[([^\[\]\n]+)\]")
_PLACE = re.compile(r"\b(?:(" + "|".join(_ORDINALS) + r")|(\d{1,2})(?:st|nd|rd|th)|(?:number|product|item|result|option) (\d{1,2})|(last)|(top))\b")
_PICK = re.compile(r"\b(?:open|click|choose|pick|take|select)\b")


def is_shop(admissible: Sequence[str]) -> bool:
    """Whether these are a shop's actions."""
    return bool(admissible) and admissible[0].startswith(("click[", "search["))


def choose(strategy: str, admissible: Sequence[str]) -> str:
    """The action that the strategy's words choose, by the rule at the top of this file. Never raises on any text."""
    text = _LABEL.sub("", strategy[:MAX_CHARACTERS], count=1).lower().strip()
    clickable = [command[6:-1] for command in admissible if command.startswith("click[")]
    spelled = [command for command in admissible if command.startswith("click[") and command.lower() in text]
    if spelled:
        return min(spelled, key=lambda command: text.index(command.lower()))
    if any(command.startswith("search[") for command in admissible):
        query = _query(text)
        return f"search[{query}]" if query else NOTHING
    if "buy now" in clickable and re.search(r"\bbuy now\b", text):
        return "click[buy now]"
    found = _named(text, [name for name in clickable if name not in _BUTTONS])
    if found is None and "next >" in clickable:
        found = _placed(text, [name for name in clickable if name not in _BUTTONS])
    if found is None:
        found = _button(text, clickable)
    if found is None and "next >" in clickable and _PICK.search(text):
        found = next((name for name in clickable if name not in _BUTTONS), None)
    return NOTHING if found is None else f"click[{found}]"


def _query(text: str) -> str:
    """What to type into the search bar."""
    for pattern in (_BRACKETS, _QUOTED, *_SEARCHES):
        match = pattern.search(text)
        if match and match[1].strip():
            return _plain(match[1])
    return _plain(text)


def _plain(text: str) -> str:
    # Brackets and line ends would cut the action short.
    return re.sub(r"[\[\]\s]+", " ", text).strip(" .,")


def _named(text: str, names: Sequence[str]) -> str | None:
    """The product or value that stands in the text word for word: the longest, then the first."""
    spoken = f" {' '.join(_WORD.findall(text))} "
    best: tuple[tuple[int, int], str] | None = None
    for name in names:
        words = _WORD.findall(name)
        place = spoken.find(f" {' '.join(words)} ") if words else -1
        if place >= 0 and (best is None or (-len(words), place) < best[0]):
            best = ((-len(words), place), name)
    return best[1] if best else None


def _placed(text: str, products: Sequence[str]) -> str | None:
    """The product whose place in the list is named first."""
    match = _PLACE.search(text)
    if not match or not products:
        return None
    word, suffixed, counted, last, _ = match.groups()
    if last:
        return products[-1]
    number = _ORDINALS.index(word) + 1 if word else int(suffixed or counted or 1)
    return products[number - 1] if 1 <= number <= len(products) else None


def _button(text: str, clickable: Sequence[str]) -> str | None:
    """The button that is said first, of those that are there."""
    best: tuple[tuple[int, int], str] | None = None
    for words, button in BUTTON_WORDS.items():
        match = re.search(rf"\b{words}\b", text) if button in clickable else None
        if match and (best is None or (match.start(), -len(words)) < best[0]):
            best = ((match.start(), -len(words)), button)
    return best[1] if best else None
