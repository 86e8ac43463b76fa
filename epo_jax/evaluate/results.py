"""The figures of an evaluation: as rows for JSON and CSV, and as a table on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from epo_jax.evaluate.folder import EvaluationFolder, Row
from epo_jax.evaluation import FIGURES, estimate, values_of
from epo_jax.report.console import console, say
from epo_jax.trajectory import Trajectory, by_environment

LABELS = {
    "success": "success",
    "reward": "mean reward",
    "bought": "bought something",
    "turns": "turns an episode",
    "strategy_tokens": "tokens a strategy",
}
SHARES = ("success", "bought")  # told in per cent


def rows(folder: EvaluationFolder, trajectories: Sequence[Trajectory]) -> list[Row]:
    """One row for each environment and figure, and for each of its task types and figure.

    n: tasks with an episode that was not masked; mean, low, high: over tasks, with the 95 % bootstrap interval; episodes, masked: how many there
    are in all, and how many of them failed to be played and count nowhere else. prompt_tokens: tokens that the strategist read, each once;
    sampled_tokens: that it wrote. seconds, money: of the environment as a whole (None in the rows of its types). None where there is no figure.
    """
    found: list[Row] = []
    for environment, group in by_environment(trajectories).items():
        seconds, money = folder.spent(environment)
        found += _rows_of(folder, environment, None, group, seconds, money)
        for kind in sorted({trajectory.extra["task_type"] for trajectory in group if "task_type" in trajectory.extra}):
            found += _rows_of(folder, environment, kind, [one for one in group if one.extra.get("task_type") == kind], None, None)
    return found


def _rows_of(
    folder: EvaluationFolder, environment: str, kind: str | None, group: Sequence[Trajectory], seconds: float | None, money: float | None
) -> list[Row]:
    masked = sum(trajectory.masked is not None for trajectory in group)
    turns = [turn for trajectory in group for turn in trajectory.turns]
    found: list[Row] = []
    for figure in FIGURES:
        values = list(values_of(group, environment, figure).values())
        if not values and not (figure == "success" and masked):
            continue
        result = estimate(values) if values else None
        found.append(
            {
                "environment": environment,
                "split": folder.what["environments"][environment]["split"],
                "task_type": kind,
                "figure": figure,
                "n": len(values),
                "mean": result and result.mean,
                "low": result and result.low,
                "high": result and result.high,
                "episodes": len(group),
                "masked": masked,
                "prompt_tokens": sum(len(turn.prompt_tokens) for turn in turns),
                "sampled_tokens": sum(len(turn.tokens) for turn in turns),
                "seconds": seconds,
                "money": money,
                "strategist": folder.what["strategist"]["name"],
                "mode": folder.what["strategist"]["mode"],
                "actor": folder.what["actor"],
            }
        )
    return found


def show(folder: EvaluationFolder, found: Sequence[Row]) -> None:
    """What people see: a table for each environment. Of the task types only success is told; the rest is in the files."""
    say(title(folder))
    for environment in dict.fromkeys(row["environment"] for row in found):
        mine = [row for row in found if row["environment"] == environment]
        whole = {row["figure"]: row for row in mine if row["task_type"] is None}
        table = Table(box=None, padding=(0, 2, 0, 2))
        for name, side in (("", "left"), ("tasks", "right"), ("mean", "right"), ("95 % interval", "left")):
            table.add_column(name, justify=side)
        for figure, row in whole.items():
            table.add_row(*_cells(row, LABELS[figure]))
            if figure == "success":
                for one in mine:
                    if one["task_type"] is not None and one["figure"] == "success":
                        table.add_row(*_cells(one, f"    {one['task_type']}"))
        say(f"\n{environment}, {mine[0]['split']}: {_account(mine[0])}")
        console.print(table)


def title(folder: EvaluationFolder) -> str:
    """Who played."""
    return f"{strategist(folder)}, actor {folder.what['actor']}"


def strategist(folder: EvaluationFolder) -> str:
    """The strategist in words; modes without one say so."""
    who = folder.what["strategist"]
    if who["mode"] == "none":
        return "no strategist"
    if who["mode"] == "react":
        return "no strategist (the actor writes its own strategies)"
    return f"{who['mode']} strategist {who['name']}"


def number(figure: str, value: float | None, signed: bool = False) -> str:
    """A figure as people read it; a dash where there is none."""
    sign = "+" if signed else ""
    if value is None:
        return "–"
    if figure in SHARES:
        return f"{100 * value:{sign}.1f}" if signed else f"{value:.1%}"
    return f"{value:{sign}.3f}" if figure == "reward" else f"{value:{sign}.1f}"


def _cells(row: Row, label: str) -> list[Text]:
    interval = "–" if row["mean"] is None else f"[{number(row['figure'], row['low'])}, {number(row['figure'], row['high'])}]"
    return [Text(cell) for cell in (label, str(row["n"]), number(row["figure"], row["mean"]), interval)]


def _account(row: Row) -> str:
    """How much was played, and what it took."""
    masked = f", of which {row['masked']} failed to be played and are left out" if row["masked"] else ""
    tokens = f"the strategist read {row['prompt_tokens']:,} tokens and wrote {row['sampled_tokens']:,}; " if row["sampled_tokens"] else ""
    return f"{row['episodes']} episodes{masked}; {tokens}{row['seconds']:.0f} s; cost {row['money']:.2f}"
