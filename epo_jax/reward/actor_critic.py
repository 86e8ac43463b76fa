"""PPO's advantages: generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438) from a critic's values, over turns or over tokens.

δ_t = r_t + discount · V_{t+1} - V_t and A_t = δ_t + discount · λ · A_{t+1}, with V = A = 0 after the last turn: an episode that ran out of turns has
ended, as its outcome counts. With λ = 1 and V = 0 these are the discounted returns; with λ = 0 the one-step errors.

Over turns t is a turn, and V_t what the critic expects before it is spoken (turn.values[0]). Over tokens t is a token: a turn's reward comes at its
last one, λ applies at every one, and time passes only between turns, so the discount applies at a turn's last token and is 1 within it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from epo_jax.reward.credit import register, set_advantages, turn_rewards, unmasked
from epo_jax.trajectory import Trajectory

LEVELS = ("turn", "token")


def generalised_advantages(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, gae_lambda: float) -> np.ndarray:
    """A_t of one episode: rewards, values and discounts (of what follows each step), all [T] float64."""
    advantages = np.zeros(len(rewards))
    following = following_value = 0.0
    for t in reversed(range(len(rewards))):
        error = rewards[t] + discounts[t] * following_value - values[t]
        following = error + discounts[t] * gae_lambda * following
        advantages[t], following_value = following, values[t]
    return advantages


def estimate_turns(
    trajectory: Trajectory, *, discount: float, process_weight: float, gae_lambda: float, gae: str, outcome_weight: float = 1.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(advantages, value targets A + V), each one array a turn: [1] where `gae` is "turn", [k_t] where it is "token".

    Raises `ValueError` for a turn that no critic has valued. A turn without tokens counts as one of a single token.
    """
    rewards = turn_rewards(trajectory, process_weight, outcome_weight)
    steps = [1 if gae == "turn" else max(1, len(turn.tokens)) for turn in trajectory.turns]
    for turn, count in zip(trajectory.turns, steps, strict=True):
        if len(turn.values) < count:
            raise ValueError(f"task {trajectory.task_id!r}: a turn has {len(turn.values)} values and needs {count}; let a critic value it first")
    last = np.cumsum(steps) - 1
    at_steps, discounts = np.zeros(sum(steps)), np.ones(sum(steps))
    at_steps[last], discounts[last] = rewards, discount
    values = np.concatenate([turn.values[:count] for turn, count in zip(trajectory.turns, steps, strict=True)])
    advantages = generalised_advantages(at_steps, values, discounts, gae_lambda)
    return np.split(advantages, last[:-1] + 1), np.split(advantages + values, last[:-1] + 1)


@register("ppo")
def ppo(
    trajectories: Sequence[Trajectory],
    *,
    discount: float = 0.99,
    process_weight: float = 1.0,
    outcome_weight: float = 1.0,
    gae_lambda: float = 0.95,
    gae: str = "turn",
    normalise: bool = True,
    epsilon: float = 1e-6,
) -> None:
    """A_t by generalised advantage estimation, for PPO (Schulman et al. 2017): the loss clips where `learn.clip_low` and `clip_high` say so.

    `normalise` takes the batch's mean away and divides by its standard deviation (plus `epsilon`), both with the loss's weights: 1/T_i a turn and
    1/k_t a token. Where `gae` is "token", `turn.advantage` is the mean over the turn's tokens.
    """
    kept = unmasked(trajectories)
    if not kept:
        return
    options = {"discount": discount, "process_weight": process_weight, "outcome_weight": outcome_weight, "gae_lambda": gae_lambda, "gae": gae}
    found = [estimate_turns(trajectory, **options)[0] for trajectory in kept]
    centre, scale = 0.0, 1.0
    if normalise:
        pooled = np.concatenate([turn for turns in found for turn in turns])
        weights = np.concatenate([np.full(len(turn), 1.0 / (len(turns) * len(turn))) for turns in found for turn in turns])
        centre = float(np.average(pooled, weights=weights))
        scale = math.sqrt(float(np.average((pooled - centre) ** 2, weights=weights))) + epsilon
    for trajectory, turns in zip(kept, found, strict=True):
        turns = [(turn - centre) / scale for turn in turns]
        set_advantages(trajectory, np.array([turn.mean() for turn in turns]))
        for turn, advantages in zip(trajectory.turns, turns, strict=True):
            turn.token_advantages = advantages.tolist() if gae == "token" and turn.tokens else []
