"""The explorer: an expert that knows only what it has read.

It remembers every text, searches likely places first (as a person knows that apples are kept in fridges: `HABITS`), takes
what the task names, cleans, heats or cools it at the right appliance, and puts it where it belongs or looks at it under the
lamp. It never sees the state, so a strategist that imitates it can know all that it knows. Somebody else may carry out other
actions than it asked for: it takes what happened from the feedback alone.
"""

from __future__ import annotations

import dataclasses
import re

from envs.alfworld.households import CAN_CONTAIN, HABITS, LAMPS, OBJECT_TYPES, OPENABLE, RECEPTACLE_TYPES

# As the texts write a type -> as the tables do.
_TYPE = {kind.lower(): kind for kind in (*OBJECT_TYPES, *RECEPTACLE_TYPES)}
# A receptacle that only this kind of room has.
_SIGNS = (("kitchen", ("fridge", "stoveburner", "microwave")), ("bathroom", ("toilet", "bathtubbasin")), ("bedroom", ("bed",)))
_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}

_TASK = re.compile(
    r"(?:(?P<two>find two|put two) (?P<thing2>\w+)(?: and put them)? (?:in|on) (?P<place2>\w+)"
    r"|(?:look at|examine the) (?P<thing3>\w+) (?:under|with) the (?P<lamp>\w+)"
    r"|(?P<verb>clean|heat|cool) some (?P<thing4>\w+) and put it (?:in|on) (?P<place4>\w+)"
    r"|put (?:a|some) (?:(?P<state>clean|hot|cool) )?(?P<thing1>\w+) (?:in|on) (?P<place1>\w+))"
)
_NAME = re.compile(r"\b([a-z]+) (\d+)\b")
_SEEN = re.compile(r"(?:On|In) (?:the )?([a-z]+ \d+|it), you see ([^.]*)\.")
_SUBJECT = re.compile(r"(?:arrive at|You open the|^The|You close the) ([a-z]+ \d+)")


@dataclasses.dataclass(frozen=True)
class Task:
    """What the task sentence asks for. kind: place, two, clean, heat, cool or look."""

    kind: str
    thing: str
    place: str  # a receptacle type; for `look` the lamp's type


def read_task(text: str) -> Task | None:
    """The task in a text (after "Your task is to:", or the bare sentence); None if it is none of ALFWorld's."""
    match = _TASK.search(text.rpartition("Your task is to:")[2].lower())
    if not match:
        return None
    found = match.groupdict()
    if found["two"]:
        return Task("two", found["thing2"], found["place2"])
    if found["lamp"]:
        return Task("look", found["thing3"], found["lamp"])
    if found["verb"]:
        return Task(found["verb"], found["thing4"], found["place4"])
    kind = {"clean": "clean", "hot": "heat", "cool": "cool", None: "place"}[found["state"]]
    return Task(kind, found["thing1"], found["place1"])


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do next and why.

    purpose: search (for `thing`), fetch (`thing` was seen at `place`), tool (bring `thing` to the appliance `place`), carry
    (bring `thing` to its goal `place`), drop (`thing` was taken by mistake), lamp, wait. `place` and `thing` are names with a
    number where one is known, `thing` a bare type while searching.
    """

    action: str
    purpose: str
    thing: str
    place: str


class Explorer:
    """`reset(observation)`, then `act()` and `observe(feedback)` in turn; `decision` tells why."""

    def reset(self, observation: str) -> None:
        """Begins an episode with the room text and the task sentence (a banner before them does not matter)."""
        self.task = read_task(observation)
        room_text = observation.rpartition("Your task is to:")[0]
        self.places = list(dict.fromkeys(f"{kind} {number}" for kind, number in _NAME.findall(room_text)))
        kinds = {_kind(place) for place in self.places}
        self.room = next((room for room, signs in _SIGNS if kinds.intersection(signs)), "living room")
        self.at: str | None = None
        self.near: set[str] = set()  # places that can be used from here without going there
        self.holding: str | None = None
        self.contents: dict[str, list[str]] = {}  # what was last seen in or on a place
        self.closed: dict[str, bool] = {}
        self.searched: dict[str, int] = {}  # how often a place's contents were seen
        self.visited: dict[str, int] = {}
        self.state: dict[str, set[str]] = {}  # object -> done to it: clean, heat, cool
        self.placed: dict[str, str] = {}  # things of the task that lie at their goal -> where
        self.used: set[str] = set()  # lamps
        self.refused: dict[str, int] = {}  # action -> how often nothing happened
        self.decision = Decision("look", "wait", "", "")

    # What happened

    def observe(self, feedback: str, action: str | None = None) -> None:
        """Takes in what followed. `action` is what was really carried out (default: what `act` last said)."""
        action = self.decision.action if action is None else action
        if feedback.strip() == "Nothing happens.":
            self.refused[action] = self.refused.get(action, 0) + 1
            verb, _, place = action.partition(" ")
            if action.startswith("go to "):  # there already: some places share a spot
                self.near.add(action.removeprefix("go to "))
            elif verb == "open":
                self.closed[place] = False
            return
        subject = _SUBJECT.search(feedback)
        place = subject.group(1) if subject else None
        if place and "arrive at" in feedback:
            self.at = place
            self.near = set()
            self.visited[place] = self.visited.get(place, 0) + 1
        if place and (f"{place} is closed" in feedback or "You close" in feedback):
            self.closed[place] = True
        if place and (f"{place} is open" in feedback or "You open" in feedback):
            self.closed[place] = False
        if feedback.startswith("You are facing"):
            self.near |= {f"{kind} {number}" for kind, number in _NAME.findall(feedback.partition(". ")[0])}
        seen = _SEEN.search(feedback)
        if seen:
            place = place if seen.group(1) == "it" else seen.group(1)
            if place:
                self.contents[place] = [f"{kind} {number}" for kind, number in _NAME.findall(seen.group(2))]
                self.searched[place] = self.searched.get(place, 0) + 1
        names = [f"{kind} {number}" for kind, number in _NAME.findall(feedback)]
        if feedback.startswith("You pick up") and len(names) == 2:
            self.holding = names[0]
            self._forget(names[0])
        elif feedback.startswith(("You move", "You put")) and len(names) == 2:
            self.holding = None
            self.contents.setdefault(names[1], []).append(names[0])
        elif feedback.startswith("You are carrying") and names:
            self.holding = names[0]
        elif feedback.startswith("You are not carrying"):
            self.holding = None
        elif feedback.startswith("You turn on") and names:
            self.used.add(names[0])
        else:
            for verb, opposite in (("clean", ""), ("heat", "cool"), ("cool", "heat")):
                if feedback.startswith(f"You {verb} the") and names:
                    done = self.state.setdefault(names[0], set())
                    done.add(verb)
                    done.discard(opposite)

    def _forget(self, thing: str) -> None:
        for things in self.contents.values():
            if thing in things:
                things.remove(thing)

    # What to do

    def act(self) -> str:
        """The next action. It is the same until `observe` tells of something new."""
        self.decision = self._decide()
        return self.decision.action

    def _decide(self) -> Decision:
        task = self.task
        if task is None or not self.places:
            return Decision("look", "wait", "", "")
        if self.holding and _kind(self.holding) != task.thing:
            return self._drop()
        if task.kind == "look":
            return self._look_under_lamp(task)
        if not self.holding:
            return self._fetch(task)
        tool = _TOOLS.get(task.kind)
        if tool and task.kind not in self.state.get(self.holding, ()):
            place = self._nearest(tool)
            if place is None:
                return Decision("look", "wait", self.holding, "")
            return self._go_and(place, f"{task.kind} {self.holding} with {place}", "tool", self.holding, opened=False)
        return self._carry(task)

    def _go_and(self, place: str, action: str, purpose: str, thing: str, *, opened: bool = True) -> Decision:
        """Go to `place`, open it if `opened` is needed, then `action`."""
        if not self._here(place):
            return Decision(f"go to {place}", purpose, thing, place)
        if opened and self.closed.get(place, _TYPE.get(_kind(place)) in OPENABLE):
            return Decision(f"open {place}", purpose, thing, place)
        return Decision(action, purpose, thing, place)

    def _here(self, place: str) -> bool:
        return place == self.at or place in self.near

    def _drop(self) -> Decision:
        """Somebody took the wrong thing: put it where it may be put, here if possible."""
        assert self.holding
        kind = _TYPE.get(_kind(self.holding), "")
        fitting = [place for place in self.places if kind in CAN_CONTAIN.get(_TYPE.get(_kind(place), ""), ())] or self.places
        fitting = [place for place in fitting if not self.refused.get(f"move {self.holding} to {place}")] or fitting
        place = self.at if self.at in fitting else min(fitting, key=lambda name: (bool(self.closed.get(name)), *_order(name)))
        return self._go_and(place, f"move {self.holding} to {place}", "drop", self.holding)

    def _fetch(self, task: Task) -> Decision:
        """Take a thing of the task that was seen and is not yet where it shall be; else search."""
        goal = self._goal(task)
        for place in sorted(self.contents, key=lambda name: (name != self.at, bool(self.closed.get(name)), *_order(name))):
            for thing in sorted(self.contents[place], key=_order):
                if _kind(thing) == task.thing and not self._finished(task, thing, place, goal):
                    return self._go_and(place, f"take {thing} from {place}", "fetch", thing)
        return self._search(task.thing)

    def _finished(self, task: Task, thing: str, place: str, goal: str | None) -> bool:
        if task.kind == "two":
            return place == goal
        if task.kind in _TOOLS:
            return _kind(place) == task.place and task.kind in self.state.get(thing, ())
        return task.kind == "place" and _kind(place) == task.place

    def _goal(self, task: Task) -> str | None:
        """Where things shall go: for `two` the place of that type that holds most of them already."""
        places = [place for place in self.places if _kind(place) == task.place]
        if not places:
            return None
        held = {place: sum(_kind(thing) == task.thing for thing in self.contents.get(place, ())) for place in places}
        refused = {place: bool(self.holding and self.refused.get(f"move {self.holding} to {place}")) for place in places}
        near = {place: place != self.at or task.kind == "two" for place in places}
        return min(places, key=lambda name: (refused[name], -held[name] if task.kind == "two" else 0, near[name], *_order(name)))

    def _carry(self, task: Task) -> Decision:
        goal = self._goal(task)
        if goal is None or not self.holding:
            return Decision("look", "wait", self.holding or "", "")
        return self._go_and(goal, f"move {self.holding} to {goal}", "carry", self.holding)

    def _look_under_lamp(self, task: Task) -> Decision:
        if not self.holding:
            return self._fetch(task)
        for place in sorted(self.contents, key=lambda name: (name != self.at, *_order(name))):
            for lamp in self.contents[place]:
                if _kind(lamp) == task.place:
                    return self._go_and(place, f"use {lamp}", "lamp", lamp)
        return self._search(task.place)

    def _search(self, thing: str) -> Decision:
        """The likeliest place whose contents are unknown; when all are known, the one seen least often."""
        if self.at and self.closed.get(self.at) and not self.searched.get(self.at) and not self.refused.get(f"open {self.at}"):
            return Decision(f"open {self.at}", "search", thing, self.at)
        habits = HABITS[self.room].get(_TYPE.get(thing, ""), {})
        if thing in (lamp.lower() for lamp in LAMPS) or thing.endswith("lamp"):
            habits = {"Desk": 40, "SideTable": 35, "Dresser": 20, "CoffeeTable": 5, "Shelf": 5} | habits
        counts: dict[str, int] = {}
        for place in self.places:
            counts[_kind(place)] = counts.get(_kind(place), 0) + 1

        def cost(place: str) -> tuple[int, float, str, int]:
            kind = _TYPE.get(_kind(place), "")
            likely = habits.get(kind, 0.2 if _TYPE.get(thing, "") in CAN_CONTAIN.get(kind, ()) else 0.01)
            if self.task and self.task.kind == "place" and _kind(place) == self.task.place:
                likely = 0.0  # the task would be done already
            steps = 2 if kind in OPENABLE else 1
            # A place that was visited and stayed shut counts as half seen.
            seen = 2 * self.searched.get(place, 0) + self.refused.get(f"open {place}", 0) + self.refused.get(f"examine {place}", 0)
            return (seen, -likely / counts[_kind(place)] / steps, *_order(place))

        others = [place for place in self.places if place != self.at] or self.places
        place = min(others, key=cost)
        return self._go_and(place, f"examine {place}", "search", thing)

    def _nearest(self, kind: str) -> str | None:
        places = [place for place in self.places if _kind(place) == kind]
        return min(places, key=lambda name: (name != self.at, *_order(name))) if places else None


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _order(name: str) -> tuple[str, int]:
    kind, _, number = name.partition(" ")
    return kind, int(number) if number.isdigit() else 0
