"""Several strategists on the same tasks, with one actor: each an evaluation of its own, and one table of all.

The paper's comparison is none, react, vanilla and trained: the actor alone, the actor that writes its own strategy, the strategist before its
training, and after.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.evaluate import results
from epo_jax.evaluate.compare import COMPARED, compare, p_value
from epo_jax.evaluate.folder import EvaluationFolder, Row, write_table
from epo_jax.evaluate.run import MODES, Evaluation, Options, check
from epo_jax.interrupt import StopRequest
from epo_jax.report.console import console, say


def evaluate_several(config: ConfigDict, options: Options, stop: StopRequest) -> list[Row]:
    """Evaluates every mode of `config.compare.strategists`, each in its own folder below one, and shows them side by side.

    Of `options`, the strategist is not used, and the checkpoint is `config.compare.checkpoint` if none is given. What has been evaluated is not
    evaluated again. Raises `UserError` before anything is played where one of them cannot be, and `Stopped` as an evaluation does.
    """
    modes = list(config.compare.strategists)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or len(set(modes)) < len(modes):
        raise UserError(f"compare.strategists is {tuple(modes)}: choose among {', '.join(MODES)}, each once.")
    folder = pathlib.Path(options.output or f"runs/evaluation/{config.name}_compare")
    options = dataclasses.replace(options, checkpoint=options.checkpoint or config.compare.checkpoint)
    each = [dataclasses.replace(options, strategist=mode, output=str(folder / mode)) for mode in modes]
    all_or_what_is_missing(*(functools.partial(check, config, one) for one in each))
    folders = []
    for one in each:
        evaluation = Evaluation(config, one, stop)
        evaluation.everything()
        folders.append(evaluation.folder)
    found = rows(modes, folders)
    write_table(folder / "comparison", {"what": {mode: folder.what for mode, folder in zip(modes, folders, strict=True)}}, found)
    show(folders[0], found)
    say(f"figures: {folder / 'comparison.json'} and .csv")
    return found


def rows(modes: Sequence[str], folders: Sequence[EvaluationFolder]) -> list[Row]:
    """One row for each environment, figure and mode: its own mean and interval, and the paired difference to the first mode.

    Columns: environment, figure, strategist, n, mean, low, high; against, pairs, difference, difference_low, difference_high, p, test: None in
    the rows of the first mode.
    """
    found: list[Row] = []
    changes = {mode: compare(folder, folders[0]) for mode, folder in zip(modes[1:], folders[1:], strict=True)}
    for mode, folder in zip(modes, folders, strict=True):
        for own in results.rows(folder, folder.read_episodes()):
            if own["figure"] not in COMPARED or own["task_type"] is not None or own["mean"] is None:
                continue
            same = ("environment", "figure")
            change = next((row for row in changes.get(mode, ()) if all(row[name] == own[name] for name in same)), None)
            found.append(
                {name: own[name] for name in (*same, "n", "mean", "low", "high")}
                | {"strategist": mode, "against": change and modes[0], "pairs": change and change["n"]}
                | {"difference": change and change["difference"], "difference_low": change and change["low"]}
                | {"difference_high": change and change["high"], "p": change and change["p"], "test": change and change["test"]}
            )
    return found


def show(first: EvaluationFolder, found: Sequence[Row]) -> None:
    """What people see: a table for each environment and figure."""
    partner = first.what.get("partner")
    seat = f", the other seat {partner['name']}" if partner else ""
    say(f"\nactor {first.what['actor']}{seat}")
    for environment, figure in dict.fromkeys((row["environment"], row["figure"]) for row in found):
        mine = [row for row in found if (row["environment"], row["figure"]) == (environment, figure)]
        table = Table(box=None, padding=(0, 1, 0, 1))
        table.add_column("strategist", no_wrap=True)
        table.add_column("tasks", justify="right", no_wrap=True)
        unit = "points" if figure in results.SHARES else "paired"
        for name in (f"{results.LABELS[figure]} [95 %]", f"against {mine[0]['strategist']}, {unit}", "p"):
            table.add_column(name, no_wrap=True)
        for row in mine:
            table.add_row(*map(Text, _cells(row)))
        say(f"\n{environment}, {first.what['environments'][environment]['split']}")
        console.print(table)


def _cells(row: Row) -> list[str]:
    figure = row["figure"]
    mean, low, high = (results.number(figure, row[name]) for name in ("mean", "low", "high"))
    cells = [row["strategist"], str(row["n"]), f"{mean} [{low}, {high}]"]
    if row["difference"] is None:
        return [*cells, "", ""]
    change, low, high = (results.number(figure, row[name], signed=True) for name in ("difference", "difference_low", "difference_high"))
    return [*cells, f"{change} [{low}, {high}]", p_value(row["p"])]
