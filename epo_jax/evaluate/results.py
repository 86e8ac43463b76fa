"""The figures of an evaluation: as rows for JSON and CSV, and as a table on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from epo_jax.evaluate.folder import EvaluationFolder, Row
from epo_jax.evaluation import FIGURES, estimate, values_of
from epo_jax.report.console import console, say
from epo_jax.reward.evaluator import DIMENSIONS
from epo_jax.trajectory import Trajectory, by_environment

LABELS = {
    "success": "success",
    "reward": "mean reward",
    "bought": "bought something",
    "turns": "turns an episode",
    "strategy_tokens": "tokens a strategy",
    "goal": "goal (0 to 10)",
    **{dimension: f"{dimension.removesuffix('_benefits').replace('_', ' ')} ({low} to {high})" for dimension, (low, high) in DIMENSIONS.items() if dimension != "goal"},
    "overall": "overall (mean of the seven)",
}
SHARES = ("success", "bought")  # told in per cent
SCORES = (*DIMENSIONS, "overall")
SHOWN_SCENARIOS = 10


def rows(folder: EvaluationFolder, trajectories: Sequence[Trajectory]) -> list[Row]:
    """One row for each environment and figure, and for each of its task types and figure.

    n: tasks with an episode that was not masked (of SOTOPIA: combinations, both seats together); mean, low, high: over tasks, with the 95 %
    bootstrap interval; episodes, masked: how many there are in all, and how many of them failed to be played or scored and count nowhere else.
    prompt_tokens: tokens that the strategist read, each once; sampled_tokens: that it wrote. seconds, money: of the environment as a
    whole (None in the rows of its types). None where there is no figure.
    """
    found: list[Row] = []
    for environment, group in by_environment(trajectories).items():
        seconds, money = folder.spent(environment)
        found += _rows_of(folder, environment, {"task_type": None}, group, {"seconds": seconds, "money": money})
        for kind in sorted({trajectory.extra["task_type"] for trajectory in group if "task_type" in trajectory.extra}):
            of_kind = [one for one in group if one.extra.get("task_type") == kind]
            found += _rows_of(folder, environment, {"task_type": kind}, of_kind, {"seconds": None, "money": None})
    return found


def scenario_rows(folder: EvaluationFolder, trajectories: Sequence[Trajectory]) -> list[Row]:
    """One row for each scenario (`extra["scenario"]`) and each of its scores; none where no environment has scenarios.

    Columns as of `rows`, with `scenario` (its id) and `codename` in the place of `task_type`, and without seconds and money.
    """
    found: list[Row] = []
    for environment, group in by_environment(trajectories).items():
        codenames = {one.extra["scenario"]: one.extra["codename"] for one in group if "scenario" in one.extra}
        for scenario, codename in sorted(codenames.items()):
            of_it = [one for one in group if one.extra.get("scenario") == scenario]
            part = {"scenario": scenario, "codename": codename}
            found += _rows_of(folder, environment, part, of_it, {}, figures=("success", *SCORES))
    return found


def _rows_of(
    folder: EvaluationFolder, environment: str, part: Row, group: Sequence[Trajectory], spent: Row, figures: Iterable[str] = FIGURES
) -> list[Row]:
    """The figures of a group of episodes. part, spent: columns that say which group it is, and what it took."""
    masked = sum(trajectory.masked is not None for trajectory in group)
    turns = [turn for trajectory in group for turn in trajectory.turns]
    found: list[Row] = []
    for figure in figures:
        values = list(values_of(group, environment, figure).values())
        if not values and not (figure == "success" and masked):
            continue
        result = estimate(values) if values else None
        found.append(
            {
                "environment": environment,
                "split": folder.what["environments"][environment]["split"],
                **part,
                "figure": figure,
                "n": len(values),
                "mean": result and result.mean,
                "low": result and result.low,
                "high": result and result.high,
                "episodes": len(group),
                "masked": masked,
                "prompt_tokens": sum(len(turn.prompt_tokens) for turn in turns),
                "sampled_tokens": sum(len(turn.tokens) for turn in turns),
                **spent,
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


def show_scenarios(found: Sequence[Row]) -> None:
    """The scenarios in which the goal score is lowest; the rest is in the files."""
    goals = sorted((row for row in found if row["figure"] == "goal" and row["mean"] is not None), key=lambda row: row["mean"])
    overall = {(row["environment"], row["scenario"]): row for row in found if row["figure"] == "overall"}
    if not goals:
        return
    table = Table(box=None, padding=(0, 2, 0, 2))
    for name, side in (("scenario", "left"), ("tasks", "right"), ("goal", "right"), ("95 % interval", "left"), ("overall", "right")):
        table.add_column(name, justify=side)
    for row in goals[:SHOWN_SCENARIOS]:
        other = overall.get((row["environment"], row["scenario"]))
        name = row["scenario"] if row["codename"] == row["scenario"] else f"{row['codename']} ({row['scenario'][-6:]})"
        table.add_row(*_cells(row, name), Text(number("overall", other and other["mean"])))
    how_many = f"the {SHOWN_SCENARIOS} of {len(goals)} scenarios with the lowest goal scores" if len(goals) > SHOWN_SCENARIOS else "scenarios by goal score"
    say(f"\n{how_many} (all of them: scenarios.json and .csv)")
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
    return f"{value:{sign}.{3 if figure == 'reward' else 2 if figure in SCORES else 1}f}"


def _cells(row: Row, label: str) -> list[Text]:
    interval = "–" if row["mean"] is None else f"[{number(row['figure'], row['low'])}, {number(row['figure'], row['high'])}]"
    return [Text(cell) for cell in (label, str(row["n"]), number(row["figure"], row["mean"]), interval)]


def _account(row: Row) -> str:
    """How much was played, and what it took."""
    masked = f", of which {row['masked']} failed to be played and are left out" if row["masked"] else ""
    tokens = f"the strategist read {row['prompt_tokens']:,} tokens and wrote {row['sampled_tokens']:,}; " if row["sampled_tokens"] else ""
    return f"{row['episodes']} episodes{masked}; {tokens}{row['seconds']:.0f} s; cost {row['money']:.2f}"
