"""Evaluation figures: means with intervals, and the paired difference of two evaluations on the same tasks, with its p-value.

The two seats of a conversation (SOTOPIA) do well or badly together, and so do two conversations of one combination. A combination is therefore one
task here, worth the mean of all its episodes and seats: it is drawn whole in a bootstrap, and paired whole in a comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from epo_jax.reward.evaluator import DIMENSIONS, overall
from epo_jax.trajectory import Trajectory, by_environment

RESAMPLES = 10_000
# What one episode says of each figure; None where it says nothing.
FIGURES = {
    "success": lambda trajectory: trajectory.success,
    "reward": lambda trajectory: trajectory.outcome if trajectory.environment != "sotopia" else None,  # there it is goal / 10
    "bought": lambda trajectory: trajectory.extra.get("bought"),
    "goal": lambda trajectory: 10 * trajectory.outcome if trajectory.environment == "sotopia" else None,
    **{dimension: lambda trajectory, dimension=dimension: _scores(trajectory).get(dimension) for dimension in DIMENSIONS if dimension != "goal"},
    "overall": lambda trajectory: overall(_scores(trajectory)) if _scores(trajectory) else None,
    "turns": lambda trajectory: len(trajectory.turns),
    "strategy_tokens": lambda trajectory: _strategy_tokens(trajectory),
}
MAIN_FIGURES = {"alfworld": "success", "webshop": "reward", "sotopia": "goal"}  # what an environment is judged by; any other by its reward


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
    generator, at_once = np.random.default_rng(0), max(1, 1_000_000 // sample.size)  # thousands of tasks would fill the memory
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    means = np.concatenate([sample[generator.integers(0, sample.size, (size, sample.size))].mean(axis=1) for size in sizes])
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sample.mean()), float(low), float(high), int(sample.size))


def values_of(trajectories: Sequence[Trajectory], environment: str, figure: str) -> dict[str, float]:
    """Task (`task_of`) → the mean of a figure over the task's episodes that were not masked; tasks without any are left out.

    Figures: "success" and "bought" (0 or 1), "reward" (in [0, 1]), "turns" (of an episode), "strategy_tokens" (of a turn). Of SOTOPIA, in the
    place of "reward", "goal" (in [0, 10], by a rule or an evaluator); where an evaluator scored, its other six dimensions in their ranges, and
    "overall", the mean of the seven.
    """
    read, found = FIGURES[figure], dict[str, list[float]]()
    for trajectory in trajectories:
        if trajectory.masked is None and trajectory.environment == environment and (value := read(trajectory)) is not None:
            found.setdefault(task_of(trajectory), []).append(float(value))
    return {task: float(np.mean(values)) for task, values in found.items()}


def task_of(trajectory: Trajectory) -> str:
    """The task's id; of a conversation the combination's, which both seats share: "sotopia/01H7…" for "sotopia/01H7…/1" at seat "1"."""
    return trajectory.task_id.removesuffix(f"/{trajectory.seat}")


def _scores(trajectory: Trajectory) -> dict[str, float]:
    """Dimension → score; none where no evaluator scored."""
    return trajectory.extra.get("scores", {})


def main_figures(trajectories: Sequence[Trajectory]) -> dict[str, Estimate]:
    """Environment → its main figure, of those that have an episode that was not masked; environments by name."""
    values = {name: values_of(group, name, main_figure(name)) for name, group in by_environment(trajectories).items()}
    return {name: estimate(list(of_tasks.values())) for name, of_tasks in values.items() if of_tasks}


def main_figure(environment: str) -> str:
    """The figure that an environment is judged by."""
    return MAIN_FIGURES.get(environment, "reward")


def mean_outcome(trajectories: Sequence[Trajectory]) -> float:
    """The mean over environments of the mean outcome of their episodes, in [0, 1]; NaN where every episode was masked."""
    played = by_environment(trajectory for trajectory in trajectories if trajectory.masked is None)
    means = [np.mean([trajectory.outcome for trajectory in group]) for group in played.values()]
    return float(np.mean(means)) if means else math.nan


def _strategy_tokens(trajectory: Trajectory) -> float | None:
    """Tokens a turn; None where nothing was sampled, as without a strategist."""
    lengths = [len(turn.tokens) for turn in trajectory.turns]
    return float(np.mean(lengths)) if any(lengths) else None


def paired_difference(before: dict[str, float], after: dict[str, float]) -> Estimate:
    """`after` − `before`, task by task, over the tasks that both have."""
    both = sorted(before.keys() & after.keys())
    return estimate([after[task] - before[task] for task in both])


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """The two-sided p-value of "both are alike", and the name of the test that gave it."""

    p: float
    name: str


def paired_test(before: dict[str, float], after: dict[str, float]) -> PairedTest:
    """Whether the values of the tasks that both have differ by more than chance.

    McNemar's exact test where all values are 0 or 1; else the permutation test that flips the signs of the differences: exact where they are
    few, with RESAMPLES draws (fixed seed) otherwise.
    """
    both = sorted(before.keys() & after.keys())
    differences = np.asarray([after[task] - before[task] for task in both], np.float64)
    differences = differences[differences != 0.0]  # equal pairs have no sign to flip
    if all(values[task] in (0.0, 1.0) for task in both for values in (before, after)):
        p = stats.binomtest(int(np.sum(differences > 0)), differences.size).pvalue if differences.size else 1.0
        return PairedTest(float(p), "McNemar, exact")
    exact = 2.0**differences.size <= RESAMPLES
    name = "paired permutation, exact" if exact else f"paired permutation, {RESAMPLES} draws"
    if differences.size < 2:  # both signs of one difference are equally far from 0
        return PairedTest(1.0, name)
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=np.random.default_rng(0)
    )
    return PairedTest(float(found.pvalue), name)


def report(now: Sequence[Trajectory], before: Sequence[Trajectory], environment: str) -> str:
    """One environment's figures in words, each with its paired difference to `before` (no trajectories: none). "" if nothing was played.

    Where the reward is success itself, it is not told twice.
    """
    parts = []
    for figure in ("success", "reward", "bought", "goal", "overall"):
        values, earlier = values_of(now, environment, figure), values_of(before, environment, figure)
        if not values or (figure == "reward" and values == values_of(now, environment, "success")):
            continue
        mean, share = estimate(list(values.values())), figure not in ("goal", "overall")
        part = f"{figure} {mean}" if share else f"{figure} {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
        if values.keys() & earlier.keys():
            change = paired_difference(earlier, values)
            scale, unit = (100, " points") if share else (1, "")
            part += f", paired difference to before {scale * change.mean:+.1f}{unit} [{scale * change.low:+.1f}, {scale * change.high:+.1f}]"
        parts.append(part)
    return "; ".join(parts) + f"; n = {len(values_of(now, environment, 'success'))}" if parts else ""
