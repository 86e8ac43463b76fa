"""The literal actor, the embedded LLM_d: it does what the strategist's words say, and no more.

The rule, in full. `choose(strategy, admissible)`:

1. Only the first 2,000 characters count, as lower-case words and numbers. A leading label ("Thought:") is skipped.
2. If the words hold an admissible command of two or more words, word for word, that command is carried out (the longest
   such one; of equally long ones the first named).
3. Otherwise words are read one by one. Some name verbs (`VERBS`: "check" names `go`, `open` and `examine`, "grab" names
   `take`). A noun of the admissible commands names a thing, with the number that follows it, or without any ("cabinets" and
   "side table" are understood). A few everyday nouns stand for ALFWorld's (`NOUNS`: "lamp", "sink").
4. Each command scores 2 points if its verb is named, 3 for each of its things that is named with its number, 1 for each that
   is named without. Out of the question are commands with a thing of which only other numbers are named, and those about
   another place where a place is named ("put the mug in cabinet 2" does not put it on the desk nearby; `take` is excepted,
   since "take the mug to cabinet 2" leaves unsaid where it is now). Places are what one can go to, open, or put things in.
5. The best command is carried out if it has at least 3 points, or if its verb is named by a word that names no other verb, and
   no other command has that verb ("warm it up", with one thing in hand and the microwave at hand).
6. Ties go to the verb that was named first, then to the order of `PRECEDENCE`, then to the lower numbers, then to the alphabet.
7. Otherwise it looks around: `look` (or, where that is not admissible, the first command).

Where the commands are a shop's (`search[words]`, `click[what]`), the rule of literal_shop.py holds instead. Where anything can be said
(`envs.ANYTHING` alone: SOTOPIA), the words themselves are the action, without the label and on one line; what they do is the environment's rule.

So a strategy that names a place by its number is followed, "one of the cabinets" always means the first one that is not
here, and "keep searching" is answered by a look around. Time is linear in the strategy and in the commands.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from envs import ANYTHING
from epo_jax.rollout import literal_shop

MAX_CHARACTERS = 2_000
THRESHOLD = 3

# Order among verbs that are otherwise equal.
PRECEDENCE = ("clean", "heat", "cool", "slice", "use", "take", "move", "go", "open", "examine", "close", "look", "inventory", "help")

# word -> the command verbs it names. Two-word forms are joined by a space.
VERBS: dict[str, tuple[str, ...]] = {
    word: verbs
    for words, verbs in (
        ("go goto walk head visit travel proceed approach reach", ("go",)),
        ("check search inspect explore look", ("go", "open", "examine")),
        ("find try", ("go", "open")),
        ("examine", ("examine",)),
        ("open", ("open",)),
        ("close shut", ("close",)),
        ("take grab get collect fetch retrieve", ("take",)),
        ("put place move drop set leave store deposit", ("move",)),
        ("carry bring return deliver", ("move", "go")),
        ("use toggle switch turn", ("use",)),
        ("heat warm reheat cook", ("heat",)),
        ("cool chill refrigerate", ("cool",)),
        ("clean wash rinse scrub", ("clean",)),
        ("slice cut", ("slice",)),
        ("inventory", ("inventory",)),
    )
    for word in words.split()
} | {"pick up": ("take",), "look at": ("examine", "go")}

# everyday noun -> the nouns of ALFWorld that it stands for.
NOUNS: dict[str, tuple[str, ...]] = {
    "lamp": ("desklamp", "floorlamp"),
    "light": ("desklamp", "floorlamp"),
    "sink": ("sinkbasin",),
    "basin": ("sinkbasin", "bathtubbasin"),
    "tub": ("bathtubbasin",),
    "bathtub": ("bathtubbasin",),
    "counter": ("countertop",),
    "table": ("diningtable", "coffeetable", "sidetable"),
    "burner": ("stoveburner",),
    "stove": ("stoveburner",),
    "bin": ("garbagecan",),
    "trash": ("garbagecan",),
    "refrigerator": ("fridge",),
    "phone": ("cellphone",),
    "couch": ("sofa",),
}

_WORD = re.compile(r"[a-z]+|[0-9]{1,9}")
_LABEL = re.compile(r"\s*(?:thought|strategy|action)s?\s*:", re.IGNORECASE)
_THING = re.compile(r"\b([a-z]+) ([0-9]{1,9})\b")
_SPELLINGS = {"goto": "go", "toggle": "use", "put": "move"}  # verbs of older games


class _Command(NamedTuple):
    text: str
    words: str  # its words, with a space at either end
    length: int  # of words
    verb: str
    things: tuple[tuple[str, str], ...]  # (noun, number)
    places: bool  # whether its last thing is a place


@functools.lru_cache(maxsize=65_536)
def _read(command: str) -> _Command:
    lowered = command[:MAX_CHARACTERS].lower()
    words = _WORD.findall(lowered)
    verb = _SPELLINGS.get(words[0], words[0]) if words else ""
    things = tuple(_THING.findall(lowered))
    places = bool(things) and (verb in ("go", "open", "close") or (len(things) > 1 and verb != "slice"))
    return _Command(command, f" {' '.join(words)} ", len(words), verb, things, places)


def choose(strategy: str, admissible: Sequence[str]) -> str:
    """The admissible command that the strategy names best, else `look`, by the rule at the top of this file.

    An empty `admissible` gives `look`. Never raises on any text.
    """
    if list(admissible) == [ANYTHING]:
        return " ".join(_LABEL.sub("", strategy[:MAX_CHARACTERS], count=1).split())
    if literal_shop.is_shop(admissible):
        return literal_shop.choose(strategy, admissible)
    commands = [_read(command) for command in admissible]
    text = strategy[:MAX_CHARACTERS]
    words = _WORD.findall(_LABEL.sub("", text, count=1).lower())
    fallback = "look" if "look" in admissible or not admissible else admissible[0]
    if not words:
        return fallback

    spoken = f" {' '.join(words)} "
    verbatim = [command for command in commands if command.length > 1 and command.words in spoken]
    if verbatim:
        return min(verbatim, key=lambda command: (-command.length, spoken.index(command.words), command.text)).text

    verbs, plain, things = _named(words, frozenset(noun for command in commands for noun, _ in command.things))
    places = {command.things[-1][0] for command in commands if command.places}
    with_verb: dict[str, int] = {}
    for command in commands:
        with_verb[command.verb] = with_verb.get(command.verb, 0) + 1
    best: tuple[tuple, str] | None = None
    for command in commands:
        points = _points(command, verbs, things)
        if points is None or (points < THRESHOLD and not (command.verb in plain and with_verb[command.verb] == 1)):
            continue
        if command.things and command.verb != "take":
            place = command.things[-1][0]
            if place in places and place not in things and not places.isdisjoint(things):
                continue
        numbers = tuple(int(number) for _, number in command.things)
        order = PRECEDENCE.index(command.verb) if command.verb in PRECEDENCE else len(PRECEDENCE)
        rank = (-points, verbs.get(command.verb, len(words)), order, numbers, command.text)
        if best is None or rank < best[0]:
            best = (rank, command.text)
    return best[1] if best else fallback


def _named(words: list[str], nouns: frozenset[str]) -> tuple[dict[str, int], set[str], dict[str, set[str]]]:
    """What the words name: verbs -> where first; those of them named by a word of one meaning; things -> their numbers."""
    verbs: dict[str, int] = {}
    plain: set[str] = set()
    things: dict[str, set[str]] = {}
    position = 0
    while position < len(words):
        word = words[position]
        after = words[position + 1] if position + 1 < len(words) else ""
        found: tuple[str, ...] = ()
        used = 1
        for name, length in ((word + after, 2), (word, 1)):
            found = _nouns(name, nouns) if length == 1 or after else ()
            if found:
                used = length
                break
        if found:
            follower = words[position + used] if position + used < len(words) else ""
            for noun in found:
                numbers = things.setdefault(noun, set())
                if follower.isdigit():
                    numbers.add(str(int(follower)))
        if not found or word in VERBS and used == 1:
            pair = f"{word} {after}"
            meanings = VERBS.get(pair, VERBS.get(word, ()))
            for verb in meanings:
                verbs.setdefault(verb, position)
            if len(meanings) == 1:
                plain.add(meanings[0])
        position += used
    return verbs, plain, things


def _nouns(name: str, nouns: frozenset[str]) -> tuple[str, ...]:
    """The nouns of the commands that a word stands for: itself, its singular, or what NOUNS says."""
    for form in (name, name[:-1] if name.endswith("s") else "", name[:-2] if name.endswith("es") else ""):
        if form in nouns:
            return (form,)
        if form in NOUNS:
            return tuple(noun for noun in NOUNS[form] if noun in nouns)
    if name in ("knives", "shelves"):
        return tuple(noun for noun in ("knife", "shelf") if noun[:3] == name[:3] and noun in nouns)
    return ()


def _points(command: _Command, verbs: dict[str, int], things: dict[str, set[str]]) -> int | None:
    """The command's points; None if another number of one of its things was named."""
    points = 2 if command.verb in verbs else 0
    for noun, number in command.things:
        numbers = things.get(noun)
        if numbers is None:
            continue
        if not numbers:
            points += 1
        elif number in numbers:
            points += 3
        else:
            return None
    return points
