"""Two evaluations over the same tasks: the paired difference of each figure, with its interval and its p-value."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from epo_jax.errors import UserError
from epo_jax.evaluate.folder import EvaluationFolder, Row, differences
from epo_jax.evaluate.results import LABELS, SCORES, SHARES, number, title
from epo_jax.evaluation import estimate, paired_difference, paired_test, values_of
from epo_jax.report.console import console, say
from epo_jax.trajectory import Trajectory

COMPARED = ("success", "reward", "bought", *SCORES)


def compare(this: EvaluationFolder, other: EvaluationFolder) -> list[Row]:
    """One row for each environment and figure that both have: `this` minus `other`, over the tasks that both played.

    n: pairs of tasks; only_this, only_other: tasks that one alone has (not evaluated there, or every episode masked); mean_this, mean_other: over
    the pairs; difference, low, high: with the 95 % bootstrap interval of the pairs; p, test: `evaluation.paired_test`.
    Raises `UserError` where the two share no task.
    """
    here, there = this.read_episodes(), other.read_episodes()
    found: list[Row] = []
    for environment in this.what["environments"]:
        for figure in COMPARED:
            row = _row(environment, figure, here, there)
            if row is not None:
                found.append(row)
    if not found:
        raise UserError(f"{this.path} and {other.path} share no task: compare evaluations of the same environment and split.")
    return found


def _row(environment: str, figure: str, here: Sequence[Trajectory], there: Sequence[Trajectory]) -> Row | None:
    mine, theirs = values_of(here, environment, figure), values_of(there, environment, figure)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return None
    change, test = paired_difference(theirs, mine), paired_test(theirs, mine)
    return {
        "environment": environment,
        "figure": figure,
        "n": len(both),
        "only_this": len(mine) - len(both),
        "only_other": len(theirs) - len(both),
        "mean_this": estimate([mine[task] for task in both]).mean,
        "mean_other": estimate([theirs[task] for task in both]).mean,
        "difference": change.mean,
        "low": change.low,
        "high": change.high,
        "p": test.p,
        "test": test.name,
    }


def show(this: EvaluationFolder, other: EvaluationFolder, found: Sequence[Row]) -> None:
    """What people see: who is compared, what differs, and a table for each environment."""
    say(f"A: {title(this)} ({this.path})")
    say(f"B: {title(other)} ({other.path})")
    apart = differences(other.what, this.what)
    if apart:
        say(f"what differs (there is B, here is A): {'; '.join(apart)}")
    for environment in dict.fromkeys(row["environment"] for row in found):
        mine = [row for row in found if row["environment"] == environment]
        table = Table(box=None, padding=(0, 2, 0, 2))
        table.add_column("")
        for name in ("pairs", "A", "B"):
            table.add_column(name, justify="right")
        for name in ("A − B, 95 % interval", "p"):
            table.add_column(name)
        for row in mine:
            table.add_row(*map(Text, _cells(row)))
        say(f"\n{environment}: {_left_out(mine[0])}")
        console.print(table)
        say("  p by: " + "; ".join(f"{LABELS[row['figure']]}, {row['test']}" for row in mine))


def _left_out(row: Row) -> str:
    alone = f", without {row['only_this']} that only A has and {row['only_other']} that only B has" if row["only_this"] or row["only_other"] else ""
    return f"{row['n']} tasks that both have{alone}"


def _cells(row: Row) -> list[str]:
    figure = row["figure"]
    means = [number(figure, row[name]) for name in ("mean_this", "mean_other")]
    change, low, high = (number(figure, row[name], signed=True) for name in ("difference", "low", "high"))
    return [LABELS[figure], str(row["n"]), *means, f"{change}{' points' if figure in SHARES else ''} [{low}, {high}]", p_value(row["p"])]


def p_value(p: float) -> str:
    """As people read it."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
