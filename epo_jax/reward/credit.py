"""Rewards to advantages: one number per strategist turn, by one small function an estimator.

Every estimator is registered in `ESTIMATORS` under its name, takes the trajectories of a batch and sets `turn.advantage`. A masked
trajectory takes no part: it enters no statistic and its turns' advantages become None.

In symbols: trajectory i has turns t = 1..T_i, r_t is a turn's reward, G_t = r_t + discount * G_{t+1} its return, A_t its advantage.
Everything here is numpy in float64 on the host.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from epo_jax.errors import UserError
from epo_jax.trajectory import Trajectory, Turn

Estimator = Callable[..., None]
ESTIMATORS: dict[str, Estimator] = {}
BASELINES = ("trajectory", "turn", "leave_one_out", "none")


def register(name: str) -> Callable[[Estimator], Estimator]:
    """Decorator: makes an estimator selectable by `name`."""

    def add(function: Estimator) -> Estimator:
        ESTIMATORS[name] = function
        return function

    return add


def find(name: str) -> Estimator:
    """The estimator `name`. Raises `UserError` for a name that is not registered."""
    if name not in ESTIMATORS:
        near = difflib.get_close_matches(name, ESTIMATORS, n=1, cutoff=0.0)
        raise UserError(f"no credit estimator is called {name!r}: did you mean {near[0]!r}? There are {', '.join(sorted(ESTIMATORS))}.")
    return ESTIMATORS[name]


def estimate(name: str, trajectories: Sequence[Trajectory], **options: Any) -> None:
    """Set the advantages of a batch of trajectories by the estimator `name`. Raises `UserError` for a name or an option that is not there."""
    find(name)(trajectories, **options)


def options_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that the estimator `name` takes."""
    taken = inspect.signature(find(name)).parameters
    return {option: value for option, value in settings.items() if option in taken}


# --- building blocks ----------------------------------------------------------------------------------------------------------------------


def unmasked(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories that are trained on: not masked, and with at least one turn. Clears the advantages of the masked ones."""
    kept = []
    for trajectory in trajectories:
        if trajectory.masked is not None:
            for turn in trajectory.turns:
                turn.advantage = None
        elif trajectory.turns:
            kept.append(trajectory)
    return kept


def picked(turn: Turn) -> bool:
    """Whether the judge counts this turn among those that decided the outcome: its process reward is above zero."""
    return turn.process_reward is not None and turn.process_reward > 0.0


def discounted_returns(rewards: Sequence[float], discount: float) -> np.ndarray:
    """G_t = r_t + discount * G_{t+1}, with G = 0 after the last turn. Shape [T_i] to [T_i]."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discount * following
        returns[t] = following
    return returns


def turn_rewards(trajectory: Trajectory, process_weight: float, outcome_weight: float = 1.0) -> list[float]:
    """r_t = process_weight * process_reward_t (signed; 0 where no judge spoke), plus outcome_weight * outcome at the last turn."""
    rewards = [process_weight * (turn.process_reward or 0.0) for turn in trajectory.turns]
    rewards[-1] += outcome_weight * trajectory.outcome
    return rewards


def set_advantages(trajectory: Trajectory, advantages: np.ndarray) -> None:
    """Gives every turn its advantage. Raises `ValueError` for one that is not finite."""
    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
        if not math.isfinite(advantage):
            raise ValueError(f"task {trajectory.task_id!r}: an advantage is {advantage}; outcome and process rewards must be finite")
        turn.advantage = float(advantage)


# --- estimators -----------------------------------------------------------------------------------------------------------------------------


@register("epo")
def epo(trajectories: Sequence[Trajectory], *, discount: float = 0.99) -> None:
    """The published estimator, exactly, its faults included (EPO, section 3; released code).

    r_t = 1 for a turn that the judge picked, else the outcome for the last turn, else 0. A_t = G_t / max_t |G_t| within the trajectory;
    where max|G| is 0 (nothing picked, outcome 0) every advantage is 0. So the outcome's size cancels when nothing is picked, a failed
    episode's picked turns are still rewarded, and no advantage is negative.
    """
    for trajectory in unmasked(trajectories):
        last = len(trajectory.turns) - 1
        rewards = [1.0 if picked(turn) else (trajectory.outcome if t == last else 0.0) for t, turn in enumerate(trajectory.turns)]
        returns = discounted_returns(rewards, discount)
        largest = np.abs(returns).max()
        set_advantages(trajectory, returns / largest if largest > 0.0 else np.zeros_like(returns))


@register("reinforce")
def reinforce(
    trajectories: Sequence[Trajectory],
    *,
    discount: float = 0.99,
    process_weight: float = 1.0,
    baseline: str = "trajectory",
    normalise: bool = False,
    epsilon: float = 1e-6,
) -> None:
    """Discounted return minus the batch's mean return: good turns go up, bad ones down (Williams 1992).

    r_t as `turn_rewards` says. A_t = G_t - b, with b by `baseline`:
      "trajectory"  the mean over trajectories of each one's mean over turns. The loss weighs turns the same way (1/T_i), so the weighted
                    advantages of a batch sum to zero: long (often failed) episodes do not drag the baseline, and no token that every
                    episode says moves up or down as a whole;
      "turn"        the mean over all turns of the batch;
      "leave_one_out"  as "trajectory", over the *other* trajectories: an unbiased baseline (Kool et al. 2019), n / (n - 1) times as far from
                    the trajectory's own mean. A batch of one trajectory has no other, and its advantages are 0;
      "none"        0.
    `normalise` divides by the standard deviation about the batch's mean (same weighting, plus `epsilon`), so the step's size does not depend on the
    reward's scale. For the first two a batch of one trajectory has only itself for a baseline.
    """
    if baseline not in BASELINES:
        raise UserError(f"the reinforce estimator has no baseline {baseline!r}: choose one of {', '.join(BASELINES)}.")
    kept = unmasked(trajectories)
    if not kept:
        return
    returns = [discounted_returns(turn_rewards(trajectory, process_weight), discount) for trajectory in kept]
    pooled = np.concatenate(returns)
    weights = np.concatenate([np.full(len(g), 1.0 if baseline == "turn" else 1.0 / len(g)) for g in returns])
    centre = 0.0 if baseline == "none" else float(np.average(pooled, weights=weights))
    scale = 1.0
    if normalise:
        scale = math.sqrt(float(np.average((pooled - centre) ** 2, weights=weights))) + epsilon
    means = np.array([g.mean() for g in returns])
    for trajectory, g in zip(kept, returns, strict=True):
        if baseline == "leave_one_out":
            centre = (means.sum() - g.mean()) / (len(kept) - 1) if len(kept) > 1 else g
        set_advantages(trajectory, (g - centre) / scale)


@register("bc")
def bc(trajectories: Sequence[Trajectory]) -> None:
    """Behaviour cloning by the same step: every turn's advantage is 1, so the loss is the negative log-likelihood of what was said. The main
    command's rounds then read an expert's demonstrations, and nothing is played."""
    for trajectory in unmasked(trajectories):
        set_advantages(trajectory, np.ones(len(trajectory.turns)))


# --- the control, and what is reported --------------------------------------------------------------------------------------------------------


def permute_advantages(trajectories: Sequence[Trajectory], seed: int) -> int:
    """The control of every learning test: turns get the advantages of turns of *other* episodes. Deterministic in `seed`.

    Rule: order the unmasked episodes at random and the turns within each at random, which makes one ring of all turns in which an episode's
    turns stand together. Every turn takes the advantage that stands m places further on, m being the turns of the longest episode. The
    pool of advantages is preserved exactly (it is permuted), an episode's new advantages come from neighbours in the ring (so they stay
    about as alike within an episode as they were), and no turn keeps a value of its own episode unless one episode holds more than half of
    all turns.

    Returns how many turns had to take a value of their own episode for that reason. What a control cannot take away: with a mean that is
    not zero (`epo`, `bc`), the factor 1/T_i of the loss still favours the turns of short episodes; `reinforce` has mean zero.
    """
    kept = unmasked(trajectories)
    random = np.random.default_rng(seed)
    ring = [
        (episode, turn)
        for episode in random.permutation(len(kept))
        for turn in random.permutation(len(kept[episode].turns))
    ]
    if not ring:
        return 0
    values = [kept[episode].turns[turn].advantage for episode, turn in ring]
    shift = max(len(trajectory.turns) for trajectory in kept)
    own = 0
    for place, (episode, turn) in enumerate(ring):
        source = (place + shift) % len(ring)
        kept[episode].turns[turn].advantage = values[source]
        own += ring[source][0] == episode
    return own


def advantage_statistics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What a round reports: {"nonzero_share", "negative_share", "mean", "std", "min", "max"} over the unmasked turns, and "masked".

    All zero where there is no unmasked turn. "masked" is a count of trajectories.
    """
    values = np.array([turn.advantage for t in trajectories if t.masked is None for turn in t.turns if turn.advantage is not None])
    masked = float(sum(t.masked is not None for t in trajectories))
    if not values.size:
        return {"nonzero_share": 0.0, "negative_share": 0.0, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0, "masked": masked}
    return {
        "nonzero_share": float((values != 0.0).mean()),
        "negative_share": float((values < 0.0).mean()),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "masked": masked,
    }
