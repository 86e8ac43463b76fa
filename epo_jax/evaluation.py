"""Evaluation figures: success with an interval, and the paired difference of two evaluations on the same tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from epo_jax.trajectory import Trajectory

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `n` tasks with its 95 % bootstrap interval (percentile method, fixed seed)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one value a task. An empty sequence raises `ValueError`."""
    sample = np.asarray(values, np.float64)
    if sample.size == 0:
        raise ValueError("no values to estimate a mean from")
    draws = np.random.default_rng(0).integers(0, sample.size, (RESAMPLES, sample.size))
    low, high = np.percentile(sample[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(float(sample.mean()), float(low), float(high), int(sample.size))


def values_of(trajectories: Sequence[Trajectory], environment: str, figure: str) -> dict[str, float]:
    """Task id → "success" (0 or 1), "reward" (in [0, 1]) or "bought" (0 or 1) of an environment's episodes that were not masked."""
    read = {
        "success": lambda trajectory: trajectory.success,
        "reward": lambda trajectory: trajectory.outcome,
        "bought": lambda trajectory: trajectory.extra.get("bought"),
    }[figure]
    chosen = [trajectory for trajectory in trajectories if trajectory.masked is None and trajectory.environment == environment]
    return {trajectory.task_id: float(read(trajectory)) for trajectory in chosen if read(trajectory) is not None}


def paired_difference(before: dict[str, float], after: dict[str, float]) -> Estimate:
    """`after` − `before`, task by task, over the tasks that both have."""
    both = sorted(before.keys() & after.keys())
    return estimate([after[task] - before[task] for task in both])


def report(now: Sequence[Trajectory], before: Sequence[Trajectory], environment: str) -> str:
    """One environment's figures in words, each with its paired difference to `before` (no trajectories: none). "" if nothing was played.

    Where the reward is success itself, it is not told twice.
    """
    parts = []
    for figure in ("success", "reward", "bought"):
        values, earlier = values_of(now, environment, figure), values_of(before, environment, figure)
        if not values or (figure == "reward" and values == values_of(now, environment, "success")):
            continue
        part = f"{figure} {estimate(list(values.values()))}"
        if values.keys() & earlier.keys():
            change = paired_difference(earlier, values)
            part += f", paired difference to before {100 * change.mean:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        parts.append(part)
    return "; ".join(parts) + f"; n = {len(values_of(now, environment, 'success'))}" if parts else ""
