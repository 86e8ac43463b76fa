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


def successes(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Task id → success (0 or 1) of the episodes that were not masked."""
    return {trajectory.task_id: float(trajectory.success) for trajectory in trajectories if trajectory.masked is None}


def paired_difference(before: dict[str, float], after: dict[str, float]) -> Estimate:
    """`after` − `before`, task by task, over the tasks that both have."""
    both = sorted(before.keys() & after.keys())
    return estimate([after[task] - before[task] for task in both])
