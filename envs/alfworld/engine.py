"""ALFWorld's text game: the rules of ALFRED's PDDL domain, played directly.

It answers as TextWorld 1.7.0 does on the same file, byte for byte, but loads in milliseconds.
Facts of the real engine that one would not guess, all kept here:

- `examine` works on receptacles here and on what is held, on nothing else.
- There is no `go to` for a receptacle at the place where one stands.
- A lamp only ever turns on; its switch is reached through a closed door.
- `look` lists "next to it" things at this location that were taken out of one of the receptacles
  here and put down in another one here, once for each such receptacle.
- A thing may lie in two receptacles at once: some games start so.
- Slicing needs the thing's recorded location only, which may differ from its receptacle's.
"""

from __future__ import annotations

import re

from envs.alfworld import text
from envs.alfworld.loader import Game, Receptacle

__all__ = ["AlfworldEngine", "Game"]

HEATERS, COOLERS, CLEANERS, _KNIVES = ("microwave",), ("fridge",), ("sink", "sinkbasin"), ("knife", "butterknife")
_PUT = re.compile(r"put (\S+ \d+) (?:in/on|in|on) (\S+ \d+)")
_TOGGLE = re.compile(r"toggle (\S+ \d+)(?: (\S+ \d+))?")

Action = tuple[str, str, str]  # verb, first name, second name ("" where there is none)


class AlfworldEngine:
    """One game in play. Names ("apple 2") stand for things and receptacles throughout.

    State, to be read by planners and changed by `step` only: location (id), held (name or None),
    inside (receptacle -> set of names), opened, hot, cool, clean, sliced, toggled (sets of names), moves
    (valid commands so far).
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self._order = {name: index for index, name in enumerate(game.things)}
        self._at: dict[str, list[Receptacle]] = {}
        for receptacle in game.receptacles.values():
            self._at.setdefault(receptacle.location, []).append(receptacle)
        self._journeys: dict[str, dict[str, Action]] = {}
        self._sliceable = [name for name, thing in game.things.items() if thing.sliceable]
        self.reset()

    def reset(self) -> str:
        """Starts again; returns the welcome, the room and the task."""
        game = self.game
        self.location = game.start
        self.held: str | None = None
        self.inside = {name: set(members) for name, members in game.inside.items()}
        self.opened = set(game.opened)
        self.hot, self.cool, self.clean = set(game.hot), set(game.cool), set(game.clean)
        self.sliced, self.toggled = set(game.sliced), set(game.toggled)
        self.moves = 0
        self._lies_at = {name: set(places) for name, places in game.thing_locations.items()}
        self._taken_from: dict[str, set[str]] = {}  # thing -> receptacles it was taken from and not put back in
        self._actions: dict[str, Action] | None = None
        first_look = self._look() if self.here else text.room(list(game.receptacles))
        return f"{text.BANNER}\n\n{first_look}\n\n{game.task}"

    # --- what is the case ---------------------------------------------------------------------

    @property
    def here(self) -> list[Receptacle]:
        """The receptacles at the agent's location; empty in the middle of the room."""
        return self._at.get(self.location, [])

    def accessible(self, receptacle: str) -> bool:
        """Whether things can be put in and taken out: it needs no opening, or it is open."""
        return not self.game.receptacles[receptacle].openable or receptacle in self.opened

    def contents(self, receptacle: str) -> list[str]:
        """Names of the things inside, in text order."""
        return sorted(self.inside[receptacle], key=self._order.__getitem__)

    def takes(self, receptacle: str, thing: str) -> bool:
        """Whether this kind of receptacle takes this kind of thing."""
        game = self.game
        return game.things[thing].kind in game.can_contain.get(game.receptacles[receptacle].kind, ())

    @property
    def won(self) -> bool:
        """Whether the goal holds now."""
        game, goal = self.game, self.game.goal
        if goal.task_type == "look_at_obj_in_light":
            return (
                self.held is not None
                and game.things[self.held].kind == goal.target
                and any(
                    game.things[name].kind == goal.lamp and game.things[name].toggleable
                    for receptacle in self.here
                    for name in self.inside[receptacle.name] & self.toggled
                )
            )
        needed = 2 if goal.task_type == "pick_two_obj_and_place" else 1
        return any(
            receptacle.kind == goal.receptacle
            and sum(self.satisfies(name) for name in self.inside[receptacle.name]) >= needed
            for receptacle in game.receptacles.values()
        )

    def satisfies(self, name: str) -> bool:
        """Whether a thing is of the goal's kind and has had the goal's treatment."""
        thing, goal = self.game.things[name], self.game.goal
        if thing.kind != goal.target:
            return False
        treatment = goal.treatment
        if treatment == "heat":
            return thing.heatable and name in self.hot
        if treatment == "cool":
            return thing.coolable and name in self.cool
        if treatment == "clean":
            return thing.cleanable and name in self.clean
        return True

    # --- what can be done ---------------------------------------------------------------------

    def admissible_commands(self) -> list[str]:
        """Every command that does something now, sorted as text."""
        return sorted(self._possible())

    def _possible(self) -> dict[str, Action]:
        """Command -> action, for all actions that are possible in this state."""
        if self._actions is not None:
            return self._actions
        game, held = self.game, self.held
        found: dict[str, Action] = dict(self._journeys_from(self.location))
        found["help"] = ("help", "", "")
        found["inventory"] = ("inventory", "", "")
        found["look"] = ("look", "", "")
        for receptacle in self.here:
            name = receptacle.name
            found[f"examine {name}"] = ("examine receptacle", name, "")
            if receptacle.openable:
                verb = "close" if name in self.opened else "open"
                found[f"{verb} {name}"] = (verb, name, "")
            members = self.inside[name]
            if self.accessible(name):
                if held is None:
                    for thing in members:
                        if game.things[thing].pickupable:
                            found[f"take {thing} from {name}"] = ("take", thing, name)
                elif self.takes(name, held):
                    found[f"move {held} to {name}"] = ("move", held, name)
            for thing in members:
                if game.things[thing].toggleable:
                    found[f"use {thing}"] = ("use", thing, "")
            if held is not None:
                self._add_treatments(found, receptacle)
        if held is not None:
            found[f"examine {held}"] = ("examine thing", held, "")
            if game.things[held].kind in _KNIVES:
                for thing in self._sliceable:
                    if self.location in self._lies_at[thing]:
                        found[f"slice {thing} with {held}"] = ("slice", thing, held)
        self._actions = found
        return found

    def _add_treatments(self, found: dict[str, Action], receptacle: Receptacle) -> None:
        held, thing = self.held, self.game.things[self.held]
        for verb, able, kinds in (
            ("clean", thing.cleanable, CLEANERS),
            ("heat", thing.heatable, HEATERS),
            ("cool", thing.coolable, COOLERS),
        ):
            if able and receptacle.kind in kinds:
                found[f"{verb} {held} with {receptacle.name}"] = (verb, held, receptacle.name)

    def _journeys_from(self, location: str) -> dict[str, Action]:
        journeys = self._journeys.get(location)
        if journeys is None:
            journeys = self._journeys[location] = {
                f"go to {receptacle.name}": ("go", receptacle.name, "")
                for receptacle in sorted(self.game.receptacles.values(), key=lambda place: f"go to {place.name}")
                if receptacle.location != location
            }
        return journeys

    def _older_spelling(self, command: str) -> str:
        """The present spelling of ALFWorld's older `put X in/on Y` and `toggle X Y`."""
        if match := _PUT.fullmatch(command):
            return f"move {match[1]} to {match[2]}"
        if match := _TOGGLE.fullmatch(command):
            thing, receptacle = match.groups()
            if receptacle is None or thing in self.inside.get(receptacle, ()):
                return f"use {thing}"
        return command

    # --- doing it -----------------------------------------------------------------------------

    def step(self, command: str) -> str:
        """Carries out one command and returns what the game says; "Nothing happens." when it is none."""
        command = command.strip()
        action = self._possible().get(command) or self._possible().get(self._older_spelling(command))
        if action is None:
            return text.INVALID
        self.moves += 1
        verb, first, second = action
        if verb == "help":
            return text.HELP
        if verb == "inventory":
            return f"You are carrying: a {self.held}." if self.held else "You are not carrying anything."
        if verb == "look":
            return self._look()
        if verb == "examine receptacle":
            return self._examine_receptacle(first)
        if verb == "examine thing":
            return self._examine_thing(first)
        self._actions = None
        return self._change(verb, first, second)

    def _change(self, verb: str, first: str, second: str) -> str:
        """The actions that change the state: their effects, then their words."""
        if verb == "go":
            self.location = self.game.receptacles[first].location
            return f"You arrive at {first}. {self._examine_receptacle(first)}"
        if verb == "open":
            self.opened.add(first)
            return f"You open the {first}. {self._examine_receptacle(first)}"
        if verb == "close":
            self.opened.discard(first)
            return f"You close the {first}."
        if verb == "take":
            self.held = first
            self.inside[second].discard(first)
            self._lies_at[first].discard(self.location)
            self._taken_from.setdefault(first, set()).add(second)
            return f"You pick up the {first} from the {second}."
        if verb == "move":
            self.held = None
            self.inside[second].add(first)
            self._lies_at[first].add(self.location)
            self._taken_from.get(first, set()).discard(second)
            return f"You move the {first} to the {second}."
        if verb == "use":
            self.toggled.add(first)
            return f"You turn on the {first}."
        if verb == "slice":
            self.sliced.add(first)
            return f"You sliced the {first} with the {second}."
        if verb == "clean":
            self.clean.add(first)
        elif verb == "heat":
            self.hot.add(first)
            self.cool.discard(first)
        else:
            self.cool.add(first)
            self.hot.discard(first)
        return f"You {verb} the {first} using the {second}."

    def _look(self) -> str:
        names = [receptacle.name for receptacle in self.here]
        if not names:  # the grammar asks for receptacles at this very place, and there are none
            return text.room([])
        floor = [
            thing
            for thing in sorted(self._taken_from, key=self._order.__getitem__)
            if self.location in self._lies_at[thing]
            for name in names
            if name in self._taken_from[thing]
        ]
        return text.facing(names, floor)

    def _examine_receptacle(self, name: str) -> str:
        openable = self.game.receptacles[name].openable
        return text.receptacle(name, openable, name in self.opened, self.contents(name))

    def _examine_thing(self, name: str) -> str:
        thing = self.game.things[name]
        return text.thing(
            name,
            thing.contents if thing.holds_things else None,
            clean=name in self.clean,
            hot=name in self.hot,
            cool=name in self.cool,
            sliced=name in self.sliced and (thing.sliceable or name in self.clean | self.hot | self.cool),
            on=thing.toggleable and name in self.toggled,
        )
