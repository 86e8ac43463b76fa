"""Estimators that compare episodes of the same task: a group is what shares environment and task id (`rollout.group_size` plays each task
several times).

In a group an episode's score is R_i = outcome + process_weight * Σ_t process_reward_t. What every episode of a group earns alike teaches
nothing about it, so its mean is the baseline: a task's difficulty drops out. Masked trajectories enter no group's statistics; a group in
which only one episode is left has nothing to be compared with and gets advantage 0 (with `rloo` too).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from epo_jax.reward.credit import discounted_returns, register, set_advantages, turn_rewards, unmasked
from epo_jax.trajectory import Trajectory

GROUP_ESTIMATORS = ("dr_grpo", "gigpo", "grpo", "rloo")


def groups_of(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The unmasked trajectories by (environment, task id), in the order in which tasks first appear."""
    found: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for trajectory in unmasked(trajectories):
        found[trajectory.environment, trajectory.task_id].append(trajectory)
    return list(found.values())


@register("grpo")
def grpo(trajectories: Sequence[Trajectory], *, process_weight: float = 0.0, epsilon: float = 1e-6) -> None:
    """A_i = (R_i − mean) / (std + epsilon) over the group, the same for every turn (Shao et al. 2024, arXiv:2402.03300, section 4.1.2)."""
    for group in groups_of(trajectories):
        scores = _scores(group, process_weight)
        _spread(group, _centred(scores) / (scores.std() + epsilon))


@register("dr_grpo")
def dr_grpo(trajectories: Sequence[Trajectory], *, process_weight: float = 0.0) -> None:
    """A_i = R_i − mean over the group (Liu et al. 2025, arXiv:2503.20783): without the division that makes the easiest and the hardest tasks
    count most. (Its other half, no division of the loss by the episode's own length, is near to `learn.normalisation` "token".)"""
    for group in groups_of(trajectories):
        _spread(group, _centred(_scores(group, process_weight)))


@register("rloo")
def rloo(trajectories: Sequence[Trajectory], *, process_weight: float = 0.0) -> None:
    """A_i = R_i − mean of the *other* episodes of the group (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740): an unbiased baseline,
    n / (n − 1) times `dr_grpo`."""
    for group in groups_of(trajectories):
        count = len(group)
        centred = _centred(_scores(group, process_weight))
        _spread(group, centred * (count / (count - 1) if count > 1 else 0.0))


@register("gigpo")
def gigpo(
    trajectories: Sequence[Trajectory],
    *,
    discount: float = 0.99,
    process_weight: float = 0.0,
    anchor_weight: float = 1.0,
    normalise: bool = True,
    epsilon: float = 1e-6,
) -> None:
    """Group in group (Feng et al. 2025, arXiv:2505.10978): A_t = A_episode + anchor_weight * A_anchor,t.

    A_episode is `grpo`'s (`dr_grpo`'s without `normalise`). For A_anchor the turns of a group that were spoken in the same state (the same last
    observation, word for word) are compared by their discounted return G_t, centred (and divided by the standard deviation) among
    themselves; a state met once gives 0. So of two ways out of one room the better one is told apart without a critic. Each part has the mean 0 among
    what it compares, episodes or turns; their sum has it over neither where episodes are of unlike lengths.
    """
    for group in groups_of(trajectories):
        scores = _scores(group, process_weight)
        episode = _centred(scores) / (scores.std() + epsilon if normalise else 1.0)
        anchors: dict[str, list[tuple[int, int]]] = defaultdict(list)
        returns = [discounted_returns(turn_rewards(trajectory, process_weight), discount) for trajectory in group]
        for i, trajectory in enumerate(group):
            for t, state in enumerate([trajectory.first_observation, *(turn.observation for turn in trajectory.turns[:-1])]):
                anchors[state].append((i, t))
        advantages = [np.full(len(trajectory.turns), episode[i]) for i, trajectory in enumerate(group)]
        for places in anchors.values():
            values = np.array([returns[i][t] for i, t in places])
            compared = _centred(values) / (values.std() + epsilon if normalise else 1.0)
            for (i, t), value in zip(places, compared, strict=True):
                advantages[i][t] += anchor_weight * value
        for trajectory, values in zip(group, advantages, strict=True):
            set_advantages(trajectory, values)


def _scores(group: Sequence[Trajectory], process_weight: float) -> np.ndarray:
    return np.array([math.fsum(turn_rewards(trajectory, process_weight)) for trajectory in group])


def _centred(values: np.ndarray) -> np.ndarray:
    """values − mean; exactly 0 where all are equal, so that dividing by a tiny deviation makes no noise of rounding."""
    return np.zeros_like(values) if np.all(values == values[0]) else values - values.mean()


def _spread(group: Sequence[Trajectory], advantages: np.ndarray) -> None:
    """One advantage an episode, on all its turns."""
    for trajectory, advantage in zip(group, advantages, strict=True):
        set_advantages(trajectory, np.full(len(trajectory.turns), advantage))
