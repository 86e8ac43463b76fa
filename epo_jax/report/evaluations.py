"""What a training run leaves of an evaluation of its held-out tasks: a row of metrics, the curve, and a line for each environment."""

from __future__ import annotations

from collections.abc import Sequence

from epo_jax.evaluation import main_figure, main_figures, report
from epo_jax.hosts import exchange
from epo_jax.learn.learner import Best
from epo_jax.report import curve
from epo_jax.report.console import say
from epo_jax.report.metrics import MetricsWriter, describe_each
from epo_jax.rollout.tasks import TaskSet
from epo_jax.run_folder import RunFolder
from epo_jax.trajectory import Trajectory, read_jsonl


def record(
    trajectories: Sequence[Trajectory],
    values: dict[str, float],
    *,
    after: int,
    unit: str,
    task_sets: Sequence[TaskSet],
    metrics: MetricsWriter,
    folder: RunFolder,
) -> None:
    """trajectories: as they were played after so many of a `unit` ("round", "cycle") of learning; values: what else the row is to say.

    What is said compares with the run's first evaluation, paired by task.
    """
    row = values | describe_each(trajectories)
    for environment, figure in main_figures(trajectories).items():
        name = f"{environment}/{main_figure(environment)}"
        row |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
    metrics.write("evaluation", after, row)
    if exchange.first():
        curve.save(metrics.path, folder.curve)
    path, first = folder.evaluation(after), folder.evaluation(0)
    before = read_jsonl(first) if after and first.exists() else []
    for task_set in task_sets:
        where = f"evaluation after {after} {unit}{'' if after == 1 else 's'}, {task_set.environment} {task_set.eval_split}"
        say(f"{where}: {report(trajectories, before, task_set.environment) or f'every episode failed to be played; see {path}'}")


def tell_best(best: Sequence[Best], *, of: int, unit: str, folder: RunFolder) -> None:
    """Says whose weights are exported, if the best were kept; the first of them is."""
    if not best:
        return
    figures = ", ".join(
        f"{name} {main_figure(name)} {figure.mean:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
        for name, figure in main_figures(read_jsonl(folder.evaluation(best[0].round))).items()
    )
    say(f"the best {unit} was {best[0].round} of {of}: {figures}; its weights are checkpoint {best[0].step}, and what is exported")
