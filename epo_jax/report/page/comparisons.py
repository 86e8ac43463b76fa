"""The page's tables of evaluations: those of the run's own held-out tasks, and folders that `epo_jax.evaluate` wrote."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from epo_jax.errors import UserError
from epo_jax.evaluate import results
from epo_jax.evaluate.compare import COMPARED, compare
from epo_jax.evaluate.folder import EvaluationFolder
from epo_jax.evaluation import estimate, main_figure, paired_difference, paired_test
from epo_jax.report.page.episodes import EpisodesFile

Table = dict[str, Any]  # {"title", "rows": [row, ...]}
# A row: label, n, mean, low, high (None where every episode failed); of a run's own evaluations `round`, the number of rounds done; `shares`: told in
# per cent. Against the table's first row with figures: difference, difference_low, difference_high, p, test.
Row = dict[str, Any]


def of_run(files: Sequence[EpisodesFile]) -> list[Table]:
    """A table for every environment and figure: a row for each evaluation, with its paired difference to the first.

    An evaluation of which every episode failed has a row without figures, so that nobody takes the one before it for the newest.
    """
    evaluations = [file for file in files if file.phase == "evaluation"]
    tables = []
    played = {environment for file in evaluations for environment in file.environments}
    found = {key for file in evaluations for key in file.values}
    nothing = {(environment, main_figure(environment)) for environment in played - {environment for environment, _ in found}}
    for environment, figure in _in_order(found | nothing):
        failed = {file.round for file in evaluations if environment in file.environments and not any(key[0] == environment for key in file.values)}
        rounds = {
            file.round: file.values.get((environment, figure), {})
            for file in evaluations
            if file.round in failed or (environment, figure) in file.values
        }
        if figure == "reward" and (environment, "success") in found and all(
            values == file.values.get((environment, "success")) for file in evaluations if (values := file.values.get((environment, "reward")))
        ):
            continue  # the reward is success itself
        first = next((values for values in rounds.values() if values), None)
        rows = [_row(label(done), figure, values, None if values is first else first) | {"round": done} for done, values in rounds.items()]
        tables.append({"title": f"{environment}: {results.LABELS[figure]}", "rows": rows})
    return tables


def of_folders(paths: Sequence[pathlib.Path]) -> list[Table]:
    """The same over evaluations that were made on their own, each compared with the first of them on the tasks that both played.

    Raises `UserError` for a folder without results.
    """
    folders = [EvaluationFolder.of_results(path) for path in paths]
    found = [(folder, results.rows(folder, folder.read_episodes())) for folder in folders]
    differences = {(folder.path, row["environment"], row["figure"]): row for folder in folders[1:] for row in _compared(folder, folders[0])}
    tables = []
    keys = {(row["environment"], row["figure"]) for _, rows in found for row in rows if row["figure"] in COMPARED}
    for environment, figure in _in_order(keys):
        table = []
        for folder, rows in found:
            for row in rows:
                if (row["environment"], row["figure"], row["task_type"]) == (environment, figure, None):
                    more = differences.get((folder.path, environment, figure))
                    table.append(_written_row(f"{results.title(folder)}, {row['split']}", figure, row, more))
        tables.append({"title": f"{environment}: {results.LABELS[figure]}", "rows": table})
    return tables


def _compared(folder: EvaluationFolder, first: EvaluationFolder) -> list[Mapping[str, Any]]:
    try:
        return compare(folder, first)
    except UserError:  # the two share no task, which is no fault here: the table then has a dash
        return []


def _in_order(keys: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(keys, key=lambda key: (key[0], COMPARED.index(key[1])))


def label(rounds_done: int) -> str:
    """Which weights, by the rounds that they have learned from."""
    return "before the first round" if rounds_done == 0 else f"after round {rounds_done}"


def _row(label: str, figure: str, values: dict[str, float], first: dict[str, float] | None) -> Row:
    if not values:
        return {"label": label, "shares": figure in results.SHARES, "n": 0, "mean": None, "low": None, "high": None}
    result = estimate(list(values.values()))
    row = {"label": label, "shares": figure in results.SHARES, "n": result.n, "mean": result.mean, "low": result.low, "high": result.high}
    if first is not None and values.keys() & first.keys():
        change, test = paired_difference(first, values), paired_test(first, values)
        row |= {"difference": change.mean, "difference_low": change.low, "difference_high": change.high, "p": test.p, "test": test.name}
    return row


def _written_row(label: str, figure: str, row: Mapping[str, Any], difference: Mapping[str, Any] | None) -> Row:
    found = {"label": label, "shares": figure in results.SHARES, **{name: row[name] for name in ("n", "mean", "low", "high")}}
    if difference is not None:
        found |= {"difference": difference["difference"], "difference_low": difference["low"], "difference_high": difference["high"]}
        found |= {name: difference[name] for name in ("p", "test")}
    return found
