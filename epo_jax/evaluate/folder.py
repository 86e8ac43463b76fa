"""The folder of one evaluation: what was evaluated, every episode, and the figures.

    evaluation.json             what is evaluated; the same command continues it, another evaluation is refused here
    starts.json                 for each start and environment: command, versions, devices, seconds, money
    episodes/                   ENVIRONMENT.jsonl, one line an episode
    results.json, results.csv   one row a figure
    scenarios.json, .csv        one row a scenario and figure, where the environment has scenarios (SOTOPIA)
    comparison.json, .csv       with --compare
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from epo_jax.checkpoint import config_differences
from epo_jax.errors import UserError
from epo_jax.reward.evaluator import Scores
from epo_jax.run_folder import write_whole
from epo_jax.trajectory import Trajectory, read_jsonl

FORMAT = 1
Row = dict[str, Any]  # column → a string, a number, or None


@dataclasses.dataclass(frozen=True)
class EvaluationFolder:
    """path: where it lies; what: what is evaluated there (run.Evaluation.what)."""

    path: pathlib.Path
    what: dict[str, Any]
    resumed: bool = False

    @classmethod
    def open(cls, path: pathlib.Path, what: dict[str, Any], record: Mapping[str, Any]) -> EvaluationFolder:
        """The folder for this evaluation: a new one, or the one where it began. record: what else evaluation.json should tell.

        Raises `UserError` if the folder holds another evaluation or anything else, or cannot be written.
        """
        what = json.loads(json.dumps(what))  # as it will be read back
        if (path / "evaluation.json").exists():
            before = _read_what(path)
            differing = differences(before, what)
            if differing:
                more = f"; and {len(differing) - 1} more" if len(differing) > 1 else ""
                raise UserError(
                    f"{path} holds another evaluation ({differing[0]}{more}): give the same settings to continue it, or another --output."
                )
            return cls(path, before, resumed=True)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} already holds something that is no evaluation: give another --output.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "evaluation.json", json.dumps({"format": FORMAT, "what": what, **record}, indent=1))
        except OSError as error:
            raise UserError(f"cannot write the evaluation's folder {path}: {error.strerror or error}.") from error
        return cls(path, what)

    @classmethod
    def of_results(cls, path: pathlib.Path) -> EvaluationFolder:
        """The folder of an evaluation that came to its end. Raises `UserError` where there is none."""
        if not (path / "evaluation.json").is_file():
            raise UserError(f"there is no evaluation in {path}: give the --output of one.")
        if not (path / "results.json").is_file():
            raise UserError(f"the evaluation in {path} has no results yet: let it come to its end first, by the command that began it.")
        return cls(path, _read_what(path), resumed=True)

    # --- episodes ---------------------------------------------------------------------------------------------------

    def episodes(self, environment: str) -> pathlib.Path:
        """The file of an environment's episodes."""
        return self.path / "episodes" / f"{environment}.jsonl"

    def read_episodes(self) -> list[Trajectory]:
        """Every episode of every environment that was evaluated. Raises `UserError` for a missing file and for a damaged line."""
        trajectories: list[Trajectory] = []
        for environment in self.what["environments"]:
            file = self.episodes(environment)
            for number, trajectory in enumerate(read_jsonl(file), start=1):
                _check(trajectory, environment, f"line {number} of {file}")
                trajectories.append(trajectory)
        return trajectories

    # --- what it cost -----------------------------------------------------------------------------------------------

    def add_start(self, record: Mapping[str, Any]) -> None:
        """Keeps what a start did at one environment: `environment`, `seconds`, `money`, and whatever else is told."""
        try:
            write_whole(self.path / "starts.json", json.dumps([*self.starts(), dict(record)], indent=1))
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror or error}; make room, the same command continues.") from error

    def starts(self) -> list[dict[str, Any]]:
        """What `add_start` kept. A start that was killed is not among them."""
        if not (self.path / "starts.json").exists():
            return []
        starts = _read_json(self.path / "starts.json")
        for start in starts if isinstance(starts, list) else [None]:
            if not isinstance(start, dict) or not all(_is_number(start.get(name)) for name in ("seconds", "money")):
                raise UserError(f"{self.path / 'starts.json'} is damaged: remove it, and only the seconds and the cost of earlier starts are lost.")
        return starts

    def spent(self, environment: str) -> tuple[float, float]:
        """(seconds, money) of all starts at an environment."""
        starts = [start for start in self.starts() if start.get("environment") == environment]
        return math.fsum(start["seconds"] for start in starts), math.fsum(start["money"] for start in starts)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two evaluations, one phrase each ("… there and … here"). Equal weights are equal whatever they are called."""
    return config_differences(_without_names(one), _without_names(other))


def write_table(path: pathlib.Path, record: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes `record` and the rows as `path`.json, and the rows as `path`.csv. Raises `UserError` if the disk refuses."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".csv"), text.getvalue())
        write_whole(path.with_suffix(".json"), json.dumps({**record, "rows": rows}, indent=1, allow_nan=False))
    except OSError as error:
        raise UserError(f"cannot write {path}.json: {error.strerror or error}; make room, the same command continues.") from error


def _without_names(what: Mapping[str, Any]) -> dict[str, Any]:
    strategist = {name: value for name, value in what["strategist"].items() if name not in ("name", "step")}
    return {**what, "strategist": strategist}


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())[:200]}): restore it, or give another folder.") from error


def _read_what(path: pathlib.Path) -> dict[str, Any]:
    record = _read_json(path / "evaluation.json")
    what = record.get("what") if isinstance(record, dict) else None
    if not isinstance(what, dict) or not (
        isinstance(what.get("strategist"), dict)
        and all(isinstance(what["strategist"].get(name), str) for name in ("mode", "name"))
        and isinstance(what.get("actor"), str)
        and isinstance(what.get("environments"), dict)
    ):
        raise UserError(f"{path / 'evaluation.json'} does not say what was evaluated: restore it, or give another folder.")
    if record.get("format") != FORMAT:
        raise UserError(f"{path} was written in format {record.get('format')!r}, and this version reads {FORMAT}: give another folder.")
    return what


def _check(trajectory: Trajectory, environment: str, where: str) -> None:
    """Raises `UserError` for an episode whose figures are no figures, as a file that was edited may hold."""
    bought, kind, scenario, codename = (trajectory.extra.get(name) for name in ("bought", "task_type", "scenario", "codename"))
    sound = (
        trajectory.environment == environment
        and isinstance(trajectory.task_id, str)
        and isinstance(trajectory.success, bool)
        and _is_number(trajectory.outcome)
        and 0.0 <= trajectory.outcome <= 1.0
        and (trajectory.masked is None or isinstance(trajectory.masked, str))
        and (bought is None or isinstance(bought, bool))
        and (kind is None or isinstance(kind, str))
        and (scenario is None or (isinstance(scenario, str) and isinstance(codename, str)))
        and ("scores" not in trajectory.extra or _are_scores(trajectory.extra["scores"]))
    )
    if not sound:
        raise UserError(f"{where} is no episode of {environment} with an outcome in [0, 1]: remove the line and evaluate again.")


def _are_scores(value: Any) -> bool:
    """Whether an evaluator can have given them."""
    try:
        Scores(value)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
