"""A scenario, a combination (the scenario with two characters), and what one seat sees of it.

The only way from a combination to what a seat knows is `Combination.view_of`: nothing of the other seat's secret, goal, point table or topics
passes through it.
"""

from __future__ import annotations

import dataclasses
import functools

from envs.sotopia.action import Action
from envs.sotopia.bargaining import Game, Side
from envs.sotopia.markup import visible
from envs.sotopia.people import UNKNOWN, Character, Relationship
from envs.sotopia.topics import Topics, TopicSide

SEATS = (0, 1)
MAX_TURNS = 20


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens, and what each seat wants. text and goals may hold tags (markup.py).

    kind: "negotiation", "exchange", … in the embedded set, the published source elsewhere. game: where a rule scores the outcome exactly;
    topics: where a rule approximates it; neither: it needs an evaluator. max_turns: turns of both seats together.
    """

    id: str
    codename: str
    kind: str
    text: str
    goals: tuple[str, str]
    relationship: Relationship
    game: Game | None = None
    topics: Topics | None = None
    max_turns: int = MAX_TURNS


@dataclasses.dataclass(frozen=True)
class View:
    """What one seat knows. history: (seat, action) of every turn so far; side, topics: its own half of a game or of the topics.

    Everything a negotiator, an expert or a model is given about an episode comes from here.
    """

    seat: int
    names: tuple[str, str]
    scenario: str
    background: str
    other_background: str
    goal: str
    max_turns: int
    side: Side | None = None
    topics: TopicSide | None = None
    history: tuple[tuple[int, Action], ...] = ()

    @property
    def turn(self) -> int:
        """How many turns were played."""
        return len(self.history)

    @property
    def name(self) -> str:
        return self.names[self.seat]

    @property
    def other_name(self) -> str:
        return self.names[1 - self.seat]

    def opening(self) -> str:
        """The context that a seat reads before the first turn."""
        backgrounds, goals = [""] * 2, [""] * 2
        backgrounds[self.seat], backgrounds[1 - self.seat] = self.background, self.other_background
        goals[self.seat], goals[1 - self.seat] = self.goal, UNKNOWN
        lines = ["Here is the context of this interaction:", f"Scenario: {self.scenario}", f"Participants: {self.names[0]} and {self.names[1]}"]
        lines += [f"{name}'s background: {background}" for name, background in zip(self.names, backgrounds, strict=True)]
        lines += [f"{name}'s goal: {goal}" for name, goal in zip(self.names, goals, strict=True)]
        return "\n".join(lines)

    def line(self, number: int) -> str:
        """What happened in a turn, as both seats read it; turns count from 0."""
        seat, action = self.history[number]
        return f"Turn #{number}: {action.told(self.names[seat])}"

    def text(self) -> str:
        """The context and everything that happened since."""
        return "\n".join([self.opening(), *map(self.line, range(self.turn))])


@dataclasses.dataclass(frozen=True)
class Combination:
    """A scenario with the two characters that play it; seat 0 has the first move. tempers: of scripted partners (negotiator.py)."""

    id: str
    scenario: Scenario
    characters: tuple[Character, Character]
    tempers: tuple[str, str] = ("plain", "plain")
    seed: int = 0

    @property
    def names(self) -> tuple[str, str]:
        """The two names; where they are the same, the second gets a number, so that lines can be told apart."""
        first, second = (character.name for character in self.characters)
        return (first, second) if first != second else (first, f"{second} (2)")

    def view_of(self, seat: int, history: tuple[tuple[int, Action], ...] = ()) -> View:
        """What a seat knows after `history`."""
        return dataclasses.replace(self._first_views[seat], history=history)

    @functools.cached_property
    def _first_views(self) -> tuple[View, ...]:
        scenario = self.scenario
        return tuple(
            View(
                seat=seat,
                names=self.names,
                scenario=visible(scenario.text, f"agent_{seat}"),
                background=self.characters[seat].own_background(),
                other_background=self.characters[1 - seat].background_for(scenario.relationship),
                goal=visible(scenario.goals[seat], f"agent_{seat}"),
                max_turns=scenario.max_turns,
                side=scenario.game and scenario.game.sides[seat],
                topics=scenario.topics and scenario.topics.sides[seat],
            )
            for seat in SEATS
        )

    def full_text(self) -> str:
        """The context with both goals, backgrounds and secrets: for the evaluator alone."""
        lines = ["Here is the context of this interaction:", f"Scenario: {visible(self.scenario.text, 'environment')}"]
        lines.append(f"Participants: {self.names[0]} and {self.names[1]}")
        lines += [f"{name}'s background: {who.own_background()}" for name, who in zip(self.names, self.characters, strict=True)]
        lines += [f"{name}'s goal: {visible(goal, 'environment')}" for name, goal in zip(self.names, self.scenario.goals, strict=True)]
        return "\n".join(lines)
