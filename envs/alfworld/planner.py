"""The planner: an expert that sees the whole state. It proves that a game can be won and measures progress.

ALFRED's tasks need no search: a plan is to fetch one thing (two for "pick two"), perhaps treat it, and
put it down. The planner builds such a route for every thing and receptacle that could serve, from
the state as it is (hands full, doors open, a thing already hot …), and takes the shortest.
It reads an engine and never changes it. Nobody can imitate it from observations alone: it knows
where unseen things lie.
"""

from __future__ import annotations

from collections.abc import Iterator

from envs.alfworld.engine import CLEANERS, COOLERS, HEATERS, AlfworldEngine

_STATIONS = {"clean": CLEANERS, "heat": HEATERS, "cool": COOLERS}


def plan(engine: AlfworldEngine) -> list[str] | None:
    """The commands of the shortest route to the goal from the engine's present state.

    Empty when the game is won. None when the planner finds no route: in a game that can be won, that
    is so only while a thing is held that no receptacle takes.
    """
    if engine.won:
        return []
    routes = _look_routes(engine) if engine.game.goal.lamp else _place_routes(engine)
    shortest = min(routes, key=lambda route: len(route.commands), default=None)
    return None if shortest is None else shortest.commands


def distance(engine: AlfworldEngine) -> int | None:
    """The length of `plan`, in commands; None when there is no plan."""
    commands = plan(engine)
    return None if commands is None else len(commands)


def expert_action(engine: AlfworldEngine) -> str:
    """The next command of `plan`; "look" when there is nothing left or nothing helps."""
    commands = plan(engine)
    return commands[0] if commands else "look"


class Progress:
    """How far an episode has come, in [0, 1]; never falls; 1 exactly when the game has been won.

    With L0 the length of the shortest plan at the start and L the length of the shortest plan now, a
    state's value is 1 − L / L0, not below 0 (0 too where no plan exists). The progress of an
    episode is the best value so far. So each step's gain is what had never been reached before:
    going back and forth, or taking and putting back, earns nothing. best: the progress so far.
    """

    def __init__(self, engine: AlfworldEngine) -> None:
        self._start = distance(engine)
        self.best = 0.0
        self.update(engine)

    def value(self, engine: AlfworldEngine) -> float:
        """The present state's value, which can fall."""
        if engine.won:
            return 1.0
        left = distance(engine)
        if left is None or not self._start:
            return 0.0
        return max(0.0, 1.0 - left / self._start)

    def update(self, engine: AlfworldEngine) -> float:
        """Takes the present state into account and returns the progress. Call it after every step."""
        self.best = max(self.best, self.value(engine))
        return self.best


class _Route:
    """Commands, and the part of the state that they change: location, hand, doors, what was lifted out."""

    __slots__ = ("engine", "location", "held", "opened", "lifted", "commands")

    def __init__(self, engine: AlfworldEngine) -> None:
        self.engine = engine
        self.location = engine.location
        self.held = engine.held
        self.opened: frozenset[str] = frozenset()  # by this route
        self.lifted: frozenset[tuple[str, str]] = frozenset()  # (thing, receptacle) by this route
        self.commands: list[str] = []

    def copy(self) -> _Route:
        twin = _Route.__new__(_Route)
        twin.engine, twin.location, twin.held = self.engine, self.location, self.held
        twin.opened, twin.lifted = self.opened, self.lifted
        twin.commands = list(self.commands)
        return twin

    def go(self, receptacle: str) -> _Route:
        place = self.engine.game.receptacles[receptacle]
        if place.location != self.location:
            self.commands.append(f"go to {receptacle}")
            self.location = place.location
        return self

    def open(self, receptacle: str) -> _Route:
        self.go(receptacle)
        if not self.engine.accessible(receptacle) and receptacle not in self.opened:
            self.commands.append(f"open {receptacle}")
            self.opened |= {receptacle}
        return self

    def take(self, thing: str, receptacle: str) -> _Route:
        self.open(receptacle).commands.append(f"take {thing} from {receptacle}")
        self.held = thing
        self.lifted |= {(thing, receptacle)}
        return self

    def put(self, receptacle: str) -> _Route:
        self.open(receptacle).commands.append(f"move {self.held} to {receptacle}")
        self.held = None
        return self

    def treat(self, verb: str, receptacle: str) -> _Route:
        self.go(receptacle).commands.append(f"{verb} {self.held} with {receptacle}")
        return self

    def switch_on(self, lamp: str, receptacle: str) -> _Route:
        self.go(receptacle)
        if lamp not in self.engine.toggled:
            self.commands.append(f"use {lamp}")
        return self


def _where(engine: AlfworldEngine) -> dict[str, list[str]]:
    """Thing -> the receptacles in which it lies."""
    places: dict[str, list[str]] = {}
    for receptacle, members in engine.inside.items():
        for thing in members:
            places.setdefault(thing, []).append(receptacle)
    return places


def _candidates(engine: AlfworldEngine) -> list[str]:
    """Things that could serve the goal: of its kind, and able to take its treatment."""
    treatment = engine.game.goal.treatment
    return [
        name
        for name, thing in engine.game.things.items()
        if thing.kind == engine.game.goal.target
        and (not treatment or {"clean": thing.cleanable, "heat": thing.heatable, "cool": thing.coolable}[treatment])
    ]


def _fetch(engine: AlfworldEngine, route: _Route, thing: str, places: dict[str, list[str]]) -> Iterator[_Route]:
    """Routes that end with `thing` in hand; whatever else is held is put down on the way."""
    if route.held == thing:
        yield route.copy()
        return
    if not engine.game.things[thing].pickupable:
        return
    for receptacle in places.get(thing, ()):
        if route.held is None:
            yield route.copy().take(thing, receptacle)
        else:
            for freed in _put_down(engine, route, receptacle):
                yield freed.take(thing, receptacle)


def _put_down(engine: AlfworldEngine, route: _Route, next_stop: str) -> Iterator[_Route]:
    """Empties the hand where it costs least: here, at the next stop, or else at one receptacle of any kind."""
    game = engine.game
    taking = [name for name in game.receptacles if engine.takes(name, route.held)]
    near = {route.location, game.receptacles[next_stop].location}
    on_the_way = [name for name in taking if game.receptacles[name].location in near]
    elsewhere = [name for name in taking if engine.accessible(name) or name in route.opened] or taking
    for receptacle in on_the_way + elsewhere[:1]:
        yield route.copy().put(receptacle)


def _place_routes(engine: AlfworldEngine) -> Iterator[_Route]:
    """Routes that end with enough suitable things in one receptacle of the goal's kind."""
    game = engine.game
    places = _where(engine)
    candidates = _candidates(engine)
    needed = 2 if game.goal.task_type == "pick_two_obj_and_place" else 1
    for target, receptacle in game.receptacles.items():
        if receptacle.kind != game.goal.receptacle:
            continue
        inside = engine.inside[target]
        missing = needed - sum(engine.satisfies(name) for name in inside)
        if missing == 1:
            for thing in candidates:
                if not engine.satisfies(thing) or thing not in inside:
                    yield from _deliver(engine, _Route(engine), thing, target, places)
        else:
            yield from _deliver_two(engine, target, [name for name in candidates if name not in inside], places)


def _deliver_two(
    engine: AlfworldEngine, target: str, candidates: list[str], places: dict[str, list[str]]
) -> Iterator[_Route]:
    """Routes that bring two things to one receptacle. What is held goes first, if it serves."""
    for first in [engine.held] if engine.held in candidates else candidates:
        for half in _deliver(engine, _Route(engine), first, target, places):
            for second in candidates:
                if second != first:
                    yield from _deliver(engine, half, second, target, places)


def _deliver(
    engine: AlfworldEngine, route: _Route, thing: str, target: str, places: dict[str, list[str]]
) -> Iterator[_Route]:
    """Routes that fetch one thing, treat it if the goal asks, and put it in `target`.

    A thing can lie in `target` and elsewhere at once; taken from elsewhere, it stays in `target` too.
    """
    treatment = engine.game.goal.treatment
    for fetched in _fetch(engine, route, thing, places):
        stays = thing in engine.inside[target] and (thing, target) not in fetched.lifted
        if not stays and not engine.takes(target, thing):
            continue
        if not treatment or engine.satisfies(thing):
            yield fetched if stays else fetched.put(target)
            continue
        for name, station in engine.game.receptacles.items():
            if station.kind in _STATIONS[treatment]:
                treated = fetched.copy().treat(treatment, name)
                yield treated if stays else treated.put(target)


def _look_routes(engine: AlfworldEngine) -> Iterator[_Route]:
    """Routes that end at a lamp that is on, with a thing of the goal's kind in hand."""
    game = engine.game
    places = _where(engine)
    candidates = _candidates(engine)
    for lamp, thing in game.things.items():
        if thing.kind != game.goal.lamp or not thing.toggleable:
            continue
        for stand in places.get(lamp, ()):
            for target in candidates:
                for fetched in _fetch(engine, _Route(engine), target, places):
                    yield fetched.switch_on(lamp, stand)
                for fetched in _fetch(engine, _Route(engine).switch_on(lamp, stand), target, places):
                    yield fetched.go(stand)
