"""From a `game.tw-pddl` file to a checked `Game`: who is where, what it allows, what wins.

A game is JSON: `pddl_domain` and `grammar` (the rules), `pddl_problem` (the household and the goal),
`solvable`, `walkthrough`. Files come from strangers: everything is checked, nothing is evaluated,
and whatever is wrong is told in one sentence (UserError).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import stat

from envs.alfworld import pddl, rules
from epo_jax.errors import UserError

MAX_BYTES = 4_000_000
MAX_ENTITIES = 5_000
MAX_WALKTHROUGH = 1_000


@dataclasses.dataclass(frozen=True)
class Receptacle:
    """A place for things. name: as players see it ("fridge 1"); kind: "fridge"; location: an opaque id."""

    name: str
    kind: str
    location: str
    openable: bool


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object. name: "apple 2"; kind: "apple"; contents: names of what lies inside it for good, in text order."""

    name: str
    kind: str
    pickupable: bool
    cleanable: bool
    heatable: bool
    coolable: bool
    toggleable: bool
    sliceable: bool
    holds_things: bool
    contents: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Game:
    """A household, its first state and its goal. Never changed by play.

    receptacles, things: by name, in the order in which the texts list them (TextWorld's: sorted by
    id, so numbers descend). can_contain: receptacle kind -> kinds of things it takes.
    inside: receptacle name -> names in it (a thing may lie in two: the data says so).
    thing_locations: thing name -> location ids, which need not be those of its receptacle.
    """

    source: str
    task: str
    goal: rules.Goal
    receptacles: dict[str, Receptacle]
    things: dict[str, Thing]
    can_contain: dict[str, frozenset[str]]
    start: str
    inside: dict[str, tuple[str, ...]]
    thing_locations: dict[str, tuple[str, ...]]
    opened: frozenset[str]
    hot: frozenset[str]
    cool: frozenset[str]
    clean: frozenset[str]
    sliced: frozenset[str]
    toggled: frozenset[str]
    solvable: bool
    walkthrough: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike) -> Game:
        """The game in a file; UserError when it cannot be read or is no ALFWorld game."""
        return cls.from_dict(read_json(path), source=str(path))

    @classmethod
    def from_dict(cls, data: dict, source: str = "game") -> Game:
        """The game in already decoded JSON. source: names it in messages."""
        try:
            return _build(data, source)
        except UserError as error:
            raise UserError(f"{source} cannot be played: {error}") from None


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file of at most MAX_BYTES; UserError otherwise."""
    path = pathlib.Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file: name a game.tw-pddl file")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{path} has {status.st_size} bytes, more than {MAX_BYTES}: it is no ALFWorld game")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path} cannot be read ({reason}): name a game.tw-pddl file") from None
    try:
        found = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: it is damaged or no ALFWorld game") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error)[:80]}): it is damaged or no ALFWorld game") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: it is no ALFWorld game")
    return found


def _build(data: dict, source: str) -> Game:
    if not isinstance(data, dict):
        raise UserError("it is not a JSON object")
    texts = {}
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        texts[key] = data.get(key)
        if not isinstance(texts[key], str):
            raise UserError(f"its {key!r} is missing or is not text")
        if len(texts[key]) > pddl.MAX_CHARACTERS:
            raise UserError(f"its {key!r} is longer than {pddl.MAX_CHARACTERS} characters")
    solvable = data.get("solvable", True)
    if not isinstance(solvable, bool):
        raise UserError("its 'solvable' is neither true nor false")
    rules.check_domain(texts["pddl_domain"])
    task = rules.task_sentence(texts["grammar"])
    problem = pddl.read_problem(texts["pddl_problem"], "alfred", rules.SIGNATURES)
    goal = rules.recognise_goal(problem.goal)

    facts = problem.facts
    names = _names(problem)
    kinds = _one_each(facts["objecttype"], "objecttype") | _one_each(facts["receptacletype"], "receptacletype")
    locations = _one_each(facts["receptacleatlocation"], "receptacleatlocation")

    def having(predicate: str) -> frozenset[str]:
        return frozenset(names[arguments[0]] for arguments in facts[predicate])

    ids = {"receptacle": [], "object": []}
    for identifier in sorted(names):
        kind = problem.types[identifier]
        if kind in ids:
            ids[kind].append(identifier)
    openable = having("openable")
    receptacles = {}
    for identifier in ids["receptacle"]:
        if identifier not in locations or identifier not in kinds:
            raise UserError(f"its receptacle {identifier[:60]!r} has no location or no type")
        name = names[identifier]
        receptacles[name] = Receptacle(name, rules.kind_word(kinds[identifier]), locations[identifier], name in openable)

    contents: dict[str, list[str]] = {}
    for inner, outer in sorted(facts["inreceptacleobject"]):
        if inner != outer:  # TextWorld's query gives two different names
            contents.setdefault(outer, []).append(names[inner])
    traits = {
        trait: having(trait) for trait in ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable")
    }
    holders = having("isreceptacleobject")
    things = {}
    for identifier in ids["object"]:
        name = names[identifier]
        things[name] = Thing(
            name,
            rules.kind_word(kinds.get(identifier, "")),
            holds_things=name in holders,
            contents=tuple(contents.get(identifier, ())),
            **{trait: name in members for trait, members in traits.items()},
        )

    inside: dict[str, list[str]] = {name: [] for name in receptacles}
    for thing, receptacle in sorted(facts["inreceptacle"]):
        inside[names[receptacle]].append(names[thing])
    thing_locations: dict[str, list[str]] = {name: [] for name in things}
    for thing, location in facts["objectatlocation"]:
        thing_locations[names[thing]].append(location)
    can_contain: dict[str, set[str]] = {}
    for receptacle_type, thing_type in facts["cancontain"]:
        can_contain.setdefault(rules.kind_word(receptacle_type), set()).add(rules.kind_word(thing_type))
    if len(facts["atlocation"]) != 1:
        raise UserError("its initial state does not put one agent at one location")
    ((_, start),) = facts["atlocation"]
    return Game(
        source=source,
        task=task,
        goal=goal,
        receptacles=receptacles,
        things=things,
        can_contain={kind: frozenset(members) for kind, members in can_contain.items()},
        start=start,
        inside={name: tuple(members) for name, members in inside.items()},
        thing_locations={name: tuple(places) for name, places in thing_locations.items()},
        opened=having("opened"),
        hot=having("ishot"),
        cool=having("iscool"),
        clean=having("isclean"),
        sliced=having("issliced"),
        toggled=having("istoggled"),
        solvable=solvable,
        walkthrough=_walkthrough(data.get("walkthrough")),
    )


def _names(problem: pddl.Problem) -> dict[str, str]:
    """Id -> the name that players see, for every receptacle and object that a fact names.

    TextWorld's rule: the word before "_bar_" (with "basin" after it where the id says so) and a
    number; in sorted order of the ids numbers count down to 1.
    """
    used = {argument for members in problem.facts.values() for arguments in members for argument in arguments}
    shown = sorted(identifier for identifier in used if problem.types[identifier] in ("receptacle", "object"))
    if len(shown) > MAX_ENTITIES:
        raise UserError(f"it holds {len(shown)} objects, more than {MAX_ENTITIES}")
    words = {}
    counts: dict[str, int] = {}
    for identifier in sorted(used):  # locations and types count too, should one be named like an object
        word, bar, _ = identifier.partition("_bar_")
        if not bar:
            if problem.types[identifier] in ("receptacle", "object"):
                raise UserError(f"its object {identifier[:60]!r} has no position in its name (…_bar_…)")
            continue
        word += "basin" if "basin" in identifier else ""
        words[identifier] = word
        counts[word] = counts.get(word, 0) + 1
    names = {}
    for identifier in sorted(words):
        word = words[identifier]
        names[identifier] = f"{word} {counts[word]}"
        counts[word] -= 1
    return {identifier: names[identifier] for identifier in shown}


def _one_each(facts: dict[tuple[str, ...], None], predicate: str) -> dict[str, str]:
    """{first argument: second argument}; UserError when a first argument comes twice."""
    found: dict[str, str] = {}
    for first, second in facts:
        if found.setdefault(first, second) != second:
            raise UserError(f"its {first[:60]!r} has two facts {predicate!r}")
    return found


def _walkthrough(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > MAX_WALKTHROUGH
        or not all(isinstance(command, str) and len(command) <= 200 and command.isprintable() for command in value)
    ):
        raise UserError("its 'walkthrough' is not a list of commands")
    return tuple(value)
