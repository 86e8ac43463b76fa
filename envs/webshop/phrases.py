"""Puts the shopper's decisions into a strategist's words: `Thought: …`, from precise to vague.

Four styles, as in ALFWorld's phrases. `exact` is the action itself; `plain` says the same in words, with the product's id or the
option's value; `loose` points with a place in the list or names the kind only; `vague` names hardly anything. The literal actor
follows the first two, takes the nearest reading of the third and is often lost with the fourth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.speaker import MIXED, Speaker
from envs.webshop.shopper import Decision, Shopper

# style -> purpose -> wordings.
_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "exact": {"": ("{action}",)},
    "plain": {
        "search": ("search for {thing}.", "look for {thing}."),
        "open": ("open {thing}, it fits best.", "{thing} looks right, open it."),
        "choose": ("choose {thing}.", "they want {name} {thing}.", "set {name} to {thing}."),
        "buy": ("buy now.", "everything fits, so buy now."),
        "leave": ("go back to the results, it does not fit.", "go back and try another one."),
        "return": ("go back to the product.", "go back to choose."),
        "restart": ("go back to search.", "nothing was found, search again."),
    },
    "loose": {
        "search": ("search for {name}.", "we need {name}."),
        "open": ("open the {ordinal} product.", "have a look at the {ordinal} one."),
        "choose": ("{thing} is the right {name}.", "the {name} must be {thing}."),
        "buy": ("buy it.", "order this one."),
        "leave": ("go back.", "return to the list."),
        "return": ("go back.",),
        "restart": ("search for something else.",),
    },
    "vague": {
        "search": ("find what we need.",),
        "open": ("open one that fits.",),
        "choose": ("set it up as they asked.",),
        "buy": ("that is the one.",),
        "leave": ("this is not what we need.",),
        "return": ("that is enough.",),
        "restart": ("this does not work.",),
    },
}
_ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def phrase(decision: Decision, style: str, rng: random.Random) -> str:
    """The decision as one short sentence, "Thought: …", in one of the styles."""
    wordings = _WORDINGS[style]
    wording = rng.choice(wordings.get(decision.purpose) or wordings.get("") or ("look around.",))
    ordinal = _ORDINALS[decision.place] if decision.place < len(_ORDINALS) else "last"
    words = wording.format(action=decision.action, thing=decision.thing, name=decision.name, ordinal=ordinal)
    return f"Thought: {words}"


def demonstrate(
    environment: Any,
    task: Any,
    seed: int,
    weights: Mapping[str, float] = MIXED,
    *,
    max_turns: int = 10,
    actor: Callable[[str, Sequence[str]], str] | None = None,
) -> list[tuple[str, str, str]]:
    """One trip as the shopper decides, each decision in a style drawn anew: (strategy, action, observation) of each turn.

    Without an `actor` the shopper's own action is carried out, whatever was said; with one, what it makes of the words.
    """
    speaker, shopper = Speaker(phrase, random.Random(seed), weights), Shopper()
    shopper.reset(environment.reset(task))
    turns = []
    for _ in range(max_turns):
        admissible = environment.admissible
        action = shopper.act(admissible)
        strategy = speaker.say(shopper.decision)
        if actor is not None:
            action = actor(strategy, admissible)
        observation, _, done, _ = environment.step(action)
        shopper.observe(observation, action)
        turns.append((strategy, action, observation))
        if done:
            break
    return turns
