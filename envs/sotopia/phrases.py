"""Puts the expert's decisions into a strategist's words: `Strategy: …` of at most ten words, from precise to vague.

Four styles, as in the other environments. `exact` names the whole deal; `plain` names the point that changes; `loose` says the direction only;
`vague` says hardly anything, and leaves the negotiator to its plain policy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.sotopia.expert import Decision, decide
from envs.speaker import MIXED, Speaker

# style -> purpose -> wordings.
_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "exact": {
        "open": ("offer {deal}.",),
        "give": ("offer {deal}.",),
        "hold": ("offer {deal}.",),
        "accept": ("accept their offer.",),
        "ask": ("ask about the {topic}.",),
        "tell": ("tell the {topic}.",),
        "listen": ("listen and wait.",),
    },
    "plain": {
        "open": ("aim high, with {point}.", "start with {point}."),
        "give": ("ask for {point}.", "move to {point}."),
        "hold": ("hold at {point}.", "stay with {point}."),
        "accept": ("take the deal.", "accept it now."),
        "ask": ("ask for the {topic}.",),
        "tell": ("mention the {topic}.",),
        "listen": ("wait for them.",),
    },
    "loose": {
        "open": ("aim high.", "start high."),
        "give": ("concede a little.", "give way slowly."),
        "hold": ("stay firm.", "hold."),
        "accept": ("say yes.", "agree."),
        "ask": ("find out about it.",),
        "tell": ("speak openly.",),
        "listen": ("be patient.",),
    },
    "vague": {"": ("do what seems right.",)},
}


def phrase(decision: Decision, style: str, rng: random.Random) -> str:
    """The decision as one strategy, "Strategy: …", in one of the styles."""
    wordings = _WORDINGS[style]
    wording = rng.choice(wordings.get(decision.purpose) or wordings[""])
    return "Strategy: " + wording.format(deal=decision.deal, point=decision.point, topic=decision.topic)


def demonstrate(
    seat: Any,
    task: Any,
    seed: int,
    weights: Mapping[str, float] = MIXED,
    *,
    max_turns: int = 10,
    actor: Callable[[str, Sequence[str]], str] | None = None,
) -> list[tuple[str, str, str]]:
    """One episode of a SotopiaSeat as the expert advises it, each decision in a style drawn anew: (strategy, action, observation) of each turn.

    actor: makes an action of the strategy's words; without one they are the action.
    """
    speaker = Speaker(phrase, random.Random(seed), weights)
    seat.reset(task)
    turns: list[tuple[str, str, str]] = []
    while len(turns) < max_turns and not seat.done:
        strategy = speaker.say(decide(seat.view()))
        action = strategy if actor is None else actor(strategy, seat.admissible)
        observation, _, _, _ = seat.step(action)
        turns.append((strategy, action, observation))
    return turns
