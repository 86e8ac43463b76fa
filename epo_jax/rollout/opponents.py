"""Who sits opposite the strategist, where an environment has two seats (SOTOPIA).

    self       the strategist itself, with the same weights: both seats are advised, and both learn
    scripted   the environment's own program, which nobody advises
    untrained  the strategist as it was before its first round
    earlier    the strategist as it was before an earlier round; which one is drawn anew for every round
    none       the actor alone, without any strategy
    react      the actor alone, which writes a strategy of its own before each move

`config.self_play.opponents` weighs them against each other; whom an episode meets depends on (seed, round, episode) alone. Weights of earlier
rounds are kept by epo_jax/self_play.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from epo_jax.errors import UserError
from epo_jax.rollout.alone import MODES as ALONE

SELF, SCRIPTED, UNTRAINED, EARLIER = "self", "scripted", "untrained", "earlier"
KINDS = (SELF, SCRIPTED, UNTRAINED, EARLIER, *ALONE)
FIRST_ROUND = "round 0"  # the untrained strategist's name, once there are rounds


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises `UserError` for weights that no opponent can be drawn with."""
    for kind, weight in weights.items():
        if kind not in KINDS:
            raise UserError(f"self_play.opponents.{kind} is unknown: choose among {', '.join(KINDS)}.")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"self_play.opponents.{kind} is {weight}: give 0 (never) or more.")
    if not any(weights.values()):
        raise UserError(f"every weight in self_play.opponents is 0: give one of {', '.join(KINDS)} more.")


def drawn(weights: Mapping[str, float], *, seed: int, round: int, index: int, memory: int) -> str:
    """Whom an episode meets: a kind, but "earlier" and "untrained" as the round whose weights they are ("round 3"; 0 is before the first).

    In the first round both are the strategist itself. memory: how many rounds back "earlier" reaches.
    """
    kinds = [kind for kind in KINDS if weights.get(kind, 0.0) > 0]
    shares = np.array([weights[kind] for kind in kinds])
    kind = kinds[np.random.default_rng([seed, round, index]).choice(len(kinds), p=shares / shares.sum())]
    return named(kind, seed=seed, round=round, memory=memory)


def named(kind: str, *, seed: int, round: int, memory: int) -> str:
    """The opponent of this kind in this round, under the name of its weights where they are an earlier round's."""
    if kind not in (UNTRAINED, EARLIER):
        return kind
    if round == 0:
        return SELF
    return FIRST_ROUND if kind == UNTRAINED else f"round {earlier(seed, round, memory)}"


def earlier(seed: int, round: int, memory: int) -> int:
    """Which of the last `memory` rounds before `round` the "earlier" opponents of this round come from."""
    first = max(0, round - memory)
    return int(np.random.default_rng([seed, round]).integers(first, round))


def round_of(name: str) -> int | None:
    """The round whose weights an opponent has; None for one that has no earlier round's."""
    before, _, number = name.partition(" ")
    return int(number) if before == "round" and number.isdecimal() else None
