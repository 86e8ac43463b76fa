"""Puts the explorer's decisions into a strategist's words: `Thought: …`, from precise to vague.

Four styles. `exact` is the command itself; `plain` says the same with all names and numbers; `loose` names kinds without
numbers; `vague` names hardly anything. People talk in all four. The literal actor follows the first two, takes the nearest
reading of the third and is often lost with the fourth, so a strategist that clones a mixture of them can later learn from
reward which of its ways of speaking works.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.alfworld.explorer import Decision, Explorer
from envs.speaker import MIXED, Speaker

# style -> verb of the action, with the purpose where it matters -> wordings.
# {thing} and {place} are names with their numbers ({thing} is a kind while it is searched for); {kind} and {spot} have no number.
_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "exact": {"": ("{action}.",)},
    "plain": {
        "go search": ("check {place} for the {kind} next.", "visit {place} to look for the {kind}."),
        "go fetch": ("walk to {place} to get {thing}.", "go back to {place} for {thing}."),
        "go tool": ("head to {place} with {thing}.", "carry {thing} over to {place}."),
        "go carry": ("carry {thing} to {place}.", "bring {thing} to {place} now."),
        "go lamp": ("walk to {place} where the {kind} is.", "bring it to {place} with the {kind}."),
        "go drop": ("carry {thing} back to {place}.",),
        "open": ("open {place} and look inside.", "{place} is closed, so open it."),
        "examine": ("have a closer look at {place}.", "check {place} for the {kind}."),
        "take": ("pick up {thing} from {place}.", "grab {thing} from {place}."),
        "move carry": ("put {thing} in {place}.", "place {thing} on {place} to finish."),
        "move drop": ("put {thing} back on {place}.", "drop {thing} on {place}, we do not need it."),
        "clean": ("wash {thing} in {place}.", "rinse {thing} with {place}."),
        "heat": ("warm {thing} in {place}.", "cook {thing} with {place}."),
        "cool": ("chill {thing} in {place}.", "refrigerate {thing} with {place}."),
        "use": ("turn on {thing}.", "switch on {thing}."),
        "look": ("look around.",),
    },
    "loose": {
        "go search": ("look in one of the {spot}s for the {kind}.", "search the {spot}s."),
        "go fetch": ("go back to the {spot} for the {kind}.", "walk to the {spot}."),
        "go tool": ("take the {kind} to the {spot}.", "head to the {spot}."),
        "go carry": ("carry the {kind} to a {spot}.", "take the {kind} to the {spot}."),
        "go lamp": ("walk to the {spot}.", "bring it to the {kind}."),
        "go drop": ("bring the {kind} back to the {spot}.",),
        "open": ("open the {spot}.", "look inside the {spot}."),
        "examine": ("check the {spot}.",),
        "take": ("take the {kind}.", "grab the {kind} here."),
        "move carry": ("put the {kind} in the {spot}.", "place the {kind} on the {spot}."),
        "move drop": ("put the {kind} back.",),
        "clean": ("wash the {kind}.", "clean the {kind} here."),
        "heat": ("warm the {kind}.", "heat the {kind} here."),
        "cool": ("chill the {kind}.", "cool the {kind} here."),
        "use": ("turn on the lamp.", "use the {kind}."),
        "look": ("look around.",),
    },
    "vague": {
        "go search": ("keep searching.",),
        "go fetch": ("get what we saw before.",),
        "go tool": ("the {kind} is not ready yet.",),
        "go carry": ("it belongs somewhere else.",),
        "go lamp": ("now we need some light.",),
        "go drop": ("we do not need this.",),
        "open": ("see what is inside.",),
        "examine": ("have a closer look.",),
        "take": ("there it is, get it.",),
        "move carry": ("this is the right spot.",),
        "move drop": ("that is the wrong thing.",),
        "clean": ("make it clean.",),
        "heat": ("make it hot.",),
        "cool": ("make it cold.",),
        "use": ("now look at it in the light.",),
        "look": ("look around.",),
    },
}

def phrase(decision: Decision, style: str, rng: random.Random) -> str:
    """The decision as one sentence of at most about 12 words, "Thought: …", in one of the styles."""
    wordings = _WORDINGS[style]
    verb = decision.action.partition(" ")[0]
    wording = rng.choice(wordings.get(f"{verb} {decision.purpose}") or wordings.get(verb) or wordings.get("") or ("look around.",))
    spot = decision.place.partition(" ")[0]
    kind = decision.thing.partition(" ")[0]
    words = wording.format(
        action=decision.action,
        thing=decision.thing,
        place=decision.place,
        kind=kind,
        spot=spot,
    )
    return f"Thought: {words}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One turn of a demonstration: what was said, what was done, what was seen then."""

    strategy: str
    action: str
    observation: str


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """An episode of the explorer, put into words."""

    first_observation: str
    steps: list[Step]
    success: bool


def demonstrate(
    environment: Any,
    task: Any,
    rng: random.Random,
    weights: Mapping[str, float] = MIXED,
    *,
    max_turns: int = 40,
    actor: Callable[[str, Sequence[str]], str] | None = None,
) -> Demonstration:
    """Plays one episode of an ALFWorld environment as the explorer decides, each decision put into words.

    Without an `actor` the explorer's own action is carried out, whatever was said. With one, `actor(strategy, admissible)`
    acts on the words (`literal.choose`, say), and the explorer goes on from what really happened: such demonstrations also
    show how to recover from being misunderstood.
    """
    explorer = Explorer()
    speaker = Speaker(phrase, rng, weights)
    first = environment.reset(task)
    explorer.reset(first)
    steps: list[Step] = []
    success = False
    for _ in range(max_turns):
        action = explorer.act()
        strategy = speaker.say(explorer.decision)
        if actor is not None:
            action = actor(strategy, environment.admissible)
        observation, _, done, info = environment.step(action)
        explorer.observe(observation, action)
        steps.append(Step(strategy, action, observation))
        if done:
            success = bool(info["success"])
            break
    return Demonstration(first, steps, success)
