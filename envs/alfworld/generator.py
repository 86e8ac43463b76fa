"""Makes ALFWorld games: a furnished room, things where they usually lie, and a task, in the format of `game.tw-pddl`.

Nothing is downloaded. The domain and the grammar are ALFWorld's own files (`NOTICE` beside them), so a generated game reads
and plays like a real one. A game depends on its seed, size and task type alone; every one can be won, by the walkthrough
that the project's planner finds and that the game carries, as the real ones do.
"""

from __future__ import annotations

import functools
import importlib.resources
import random
from typing import Any, NamedTuple

from envs.alfworld import engine, loader, planner
from envs.alfworld.households import (
    CAN_CONTAIN,
    CLEANABLE,
    COOLABLE,
    HABITS,
    HEATABLE,
    LAMPS,
    OBJECT_TYPES,
    OPENABLE,
    RECEPTACLE_TYPES,
    ROOMS,
    SLICEABLE,
    VESSELS,
)
from epo_jax.errors import UserError

# Seeds of games to learn from are below this, seeds of games to be measured on start here.
EVALUATION_SEEDS = 1_000_000_000

TASK_TYPES = (
    "pick_and_place_simple",
    "pick_two_obj_and_place",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "look_at_obj_in_light",
)
SHORT_TASK_TYPES = dict(zip(("place", "two", "clean", "heat", "cool", "look"), TASK_TYPES, strict=True))

# The task sentence, in the wordings of the real games (each is used about equally often there).
SENTENCES = {
    "pick_and_place_simple": ("put a {thing} in {place}.", "put some {thing} on {place}."),
    "pick_two_obj_and_place": ("put two {thing} in {place}.", "find two {thing} and put them in {place}."),
    "pick_clean_then_place_in_recep": ("put a clean {thing} in {place}.", "clean some {thing} and put it in {place}."),
    "pick_heat_then_place_in_recep": ("put a hot {thing} in {place}.", "heat some {thing} and put it in {place}."),
    "pick_cool_then_place_in_recep": ("put a cool {thing} in {place}.", "cool some {thing} and put it in {place}."),
    "look_at_obj_in_light": ("look at {thing} under the {place}.", "examine the {thing} with the {place}."),
}
_ALLOWED = {  # task type -> things it can be about (None: any)
    "pick_clean_then_place_in_recep": CLEANABLE,
    "pick_heat_then_place_in_recep": HEATABLE,
    "pick_cool_then_place_in_recep": COOLABLE,
}
_TOOL = {  # task type -> the appliance it needs, which is then never the goal
    "pick_clean_then_place_in_recep": "SinkBasin",
    "pick_heat_then_place_in_recep": "Microwave",
    "pick_cool_then_place_in_recep": "Fridge",
}
_STATE = {  # task type -> (property the thing must have, state it must be in)
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}
_ROOMS_OF_TASK = {
    "pick_clean_then_place_in_recep": ("kitchen", "kitchen", "kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "look_at_obj_in_light": ("bedroom", "bedroom", "living room"),
}
_MOST_RECEPTACLES = {"small": 7, "full": 40}
# Things per receptacle, beside those of the task.
_CLUTTER = {"small": 0.75, "full": 1.1}
# How strongly things keep to their usual places; below 1 the search in the few places of a small home stays worth learning.
_HABIT = {"small": 0.4, "full": 1.0}
_LAMP_PLACES = ("Desk", "SideTable", "Dresser", "CoffeeTable", "Shelf")


class _Item(NamedTuple):
    """Something in the room: its type, its name in the problem, and (for an object) the receptacle it lies on."""

    kind: str
    name: str
    at: _Item | None = None


class Household(NamedTuple):
    """What was drawn: everything that the problem text states."""

    room: str
    receptacles: list[_Item]
    objects: list[_Item]
    task_type: str
    thing: str
    place: str
    sentence: str


def generate_game(
    seed: int, *, size: str = "small", task_type: str | None = None, walkthrough: bool = True
) -> dict[str, Any]:
    """A game in the format of ALFWorld's `game.tw-pddl`.

    size: "small" (5 to 7 receptacles, few things: for a model of a few million parameters) or "full" (as the real rooms).
    task_type: one of TASK_TYPES or SHORT_TASK_TYPES; None draws one. walkthrough: False leaves the planner's solution
    empty, which is faster. Equal arguments give equal games. Raises UserError for a size or task type that does not exist.
    """
    if size not in ROOMS:
        raise UserError(f"unknown household size {size!r}: known are {', '.join(ROOMS)}.")
    task_type = SHORT_TASK_TYPES.get(task_type or "", task_type)
    if task_type is not None and task_type not in TASK_TYPES:
        raise UserError(f"unknown task type {task_type!r}: known are {', '.join(TASK_TYPES)}.")
    rng = random.Random(f"household {size} {task_type} {seed}")
    household = None
    while household is None:  # a room may turn out to have no place for its task: draw another
        household = _draw(rng, size, task_type or rng.choice(TASK_TYPES))
    domain, grammar = _fixed_texts()
    game: dict[str, Any] = {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", household.sentence),
        "pddl_problem": _problem_text(household, rng, seed),
        "solvable": True,
        "walkthrough": [],
    }
    if walkthrough:
        game["walkthrough"] = _solve(game)
    return game


def _draw(rng: random.Random, size: str, task_type: str) -> Household | None:
    """A household for a task of this type, or None where the room drawn has no place for one."""
    room = rng.choice(_ROOMS_OF_TASK.get(task_type, tuple(ROOMS[size])))
    habits = HABITS[room]
    receptacles = _furnish(rng, size, room)
    present = sorted({item.kind for item in receptacles})

    # The task: a thing, where it shall go, and where it may lie at the start (never where it shall go).
    choices: list[tuple[str, str]] = []
    for thing, usual in habits.items():
        if thing in LAMPS or thing not in _ALLOWED.get(task_type, habits):
            continue
        if task_type == "look_at_obj_in_light":
            if any(place in usual for place in present) and any(place in _LAMP_PLACES for place in present):
                choices.append((thing, "DeskLamp"))
            continue
        for place in present:
            fits = thing in CAN_CONTAIN.get(place, ()) and place != _TOOL.get(task_type)
            if fits and any(start in usual and start != place for start in present):
                choices.append((thing, place))
    if not choices:
        return None
    # Goals first, then things: otherwise countertops, which hold everything, would be the goal of most games.
    place = rng.choice(sorted({place for _, place in choices}))
    thing = rng.choice([thing for thing, goal in choices if goal == place])

    objects: list[_Item] = []
    names: set[str] = {item.name for item in receptacles}

    def lay(kind: str, usual: dict[str, int], avoid: str | None = None) -> None:
        places = [item for item in receptacles if item.kind in usual and item.kind != avoid]
        if not places:
            return
        counts = {item.kind: sum(other.kind == item.kind for other in places) for item in places}
        weights = [usual[item.kind] ** _HABIT[size] / counts[item.kind] for item in places]
        at = rng.choices(places, weights)[0]
        objects.append(_Item(kind, _new_name(rng, kind, names), at))

    count = 2 if task_type == "pick_two_obj_and_place" else 1
    if size == "full":
        count += rng.choice((0, 1))
    elif rng.random() < 0.25:
        count += 1
    for _ in range(count):
        lay(thing, habits[thing], avoid=place)
    if task_type == "look_at_obj_in_light":
        lay("DeskLamp", dict.fromkeys(_LAMP_PLACES, 1))
    others = [kind for kind in habits if kind != thing and kind not in LAMPS]
    for _ in range(round(len(receptacles) * _CLUTTER[size] * rng.uniform(0.7, 1.3))):
        kind = rng.choice(others)
        lay(kind, habits[kind])
    sentence = rng.choice(SENTENCES[task_type]).format(thing=thing.lower(), place=place.lower())
    return Household(room, receptacles, objects, task_type, thing, place, sentence)


def _furnish(rng: random.Random, size: str, room: str) -> list[_Item]:
    """The receptacles of a room: everything that such a room needs, then extras as far as the size allows."""
    kinds: list[str] = []
    extras: list[str] = []
    for furniture in ROOMS[size][room]:
        kinds += [furniture.receptacle] * furniture.least
        extras += [furniture.receptacle] * rng.randint(0, furniture.most - furniture.least)
    rng.shuffle(extras)
    kinds += extras[: _MOST_RECEPTACLES[size] - len(kinds)]
    names: set[str] = set()
    return [_Item(kind, _new_name(rng, kind, names)) for kind in kinds]


def _new_name(rng: random.Random, kind: str, taken: set[str]) -> str:
    """A name as the real problems have: the type and a position, in metres; basins are parts of a sink or a bathtub."""
    whole = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}.get(kind)
    while True:
        parts = [whole or kind]
        for low, high in ((-300, 300), (0, 180), (-300, 300)):
            value = rng.randint(low, high)
            parts.append(f"{'_plus_' if value >= 0 else '_minus_'}{abs(value) // 100:02d}_dot_{abs(value) % 100:02d}")
        name = "_bar_".join(parts + [kind] * bool(whole))
        if name not in taken:
            taken.add(name)
            return name


@functools.cache
def _fixed_texts() -> tuple[str, str]:
    """ALFWorld's domain and grammar; the grammar's task sentence reads UNKNOWN GOAL."""
    folder = importlib.resources.files("envs.alfworld")
    return (folder / "alfred.pddl").read_text(), (folder / "alfred.twl2").read_text()


@functools.cache
def _type_declarations() -> str:
    lines = [f"        {kind}Type - otype" for kind in OBJECT_TYPES] + [f"        {kind}Type - rtype" for kind in RECEPTACLE_TYPES]
    return "\n".join(lines)


def _problem_text(household: Household, rng: random.Random, seed: int) -> str:
    """The PDDL problem that states the household and its task."""
    cells = [(x, z, turn) for x in range(12) for z in range(12) for turn in range(4)]
    drawn = rng.sample(cells, len(household.receptacles) + 1)  # the last one is where the agent starts
    spots = [f"loc_bar_{x}_bar_{z}_bar_{turn}_bar_45" for x, z, turn in drawn]
    spot = dict(zip((item.name for item in household.receptacles), spots, strict=False))
    things = sorted({item.kind for item in household.objects})
    places = sorted({item.kind for item in household.receptacles})
    declared = [f"{item.name} - object" for item in household.objects]
    declared += [f"{item.name} - receptacle" for item in household.receptacles]
    declared += [f"{name} - location" for name in spots]

    facts = [f"receptacleType {item.name} {item.kind}Type" for item in household.receptacles]
    facts += [f"objectType {item.name} {item.kind}Type" for item in household.objects]
    facts += [f"canContain {place}Type {thing}Type" for place in places for thing in things if thing in CAN_CONTAIN.get(place, ())]
    facts += [f"openable {item.name}" for item in household.receptacles if item.kind in OPENABLE]
    facts.append(f"atLocation agent1 {spots[-1]}")
    for predicate, kinds in (
        ("pickupable", set(things) - LAMPS),
        ("isReceptacleObject", VESSELS),
        ("cleanable", CLEANABLE),
        ("heatable", HEATABLE),
        ("coolable", COOLABLE),
        ("sliceable", SLICEABLE),
        ("toggleable", LAMPS),
    ):
        facts += [f"{predicate} {item.name}" for item in household.objects if item.kind in kinds]
    facts += [f"inReceptacle {item.name} {item.at.name}" for item in household.objects if item.at]
    facts += [f"wasInReceptacle {item.name} {item.at.name}" for item in household.objects if item.at]
    facts += [f"receptacleAtLocation {item.name} {spot[item.name]}" for item in household.receptacles]
    facts += [f"objectAtLocation {item.name} {spot[item.at.name]}" for item in household.objects if item.at]
    newline = "\n        "
    return (
        f"\n(define (problem plan_generated_{seed})\n(:domain alfred)\n(:objects\n        agent1 - agent\n{_type_declarations()}\n"
        f"        {newline.join(declared)}\n        )\n\n(:init\n        {newline.join(f'({fact})' for fact in facts)}\n        )\n\n"
        f"(:goal\n    {_goal_text(household)}\n)\n)\n"
    )


def _goal_text(household: Household) -> str:
    """The goal as the real problems word it."""
    thing, place = f"{household.thing}Type", f"{household.place}Type"
    if household.task_type == "look_at_obj_in_light":
        return (
            "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and "
            f"(objectType ?ot {place}) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) "
            f"(inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o))))"
        )
    if household.task_type == "pick_two_obj_and_place":
        return (
            f"(and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {thing}) (receptacleType ?r {place}) "
            f"(inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 {thing}) "
            f"(receptacleType ?r {place}) (inReceptacle ?o2 ?r)))))))"
        )
    state = ""
    if household.task_type in _STATE:
        able, done = _STATE[household.task_type]
        state = f"({able} ?o) ({done} ?o) "
    return (
        f"(and (exists (?r - receptacle) (exists (?o - object) (and {state}(inReceptacle ?o ?r) (objectType ?o {thing}) "
        f"(receptacleType ?r {place})))))"
    )


def _solve(game: dict[str, Any]) -> list[str]:
    """The planner's walkthrough of a game."""
    commands = planner.plan(engine.AlfworldEngine(loader.Game.from_dict(game)))
    assert commands, "a generated game has no solution"
    return commands
