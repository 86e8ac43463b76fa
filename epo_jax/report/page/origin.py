"""Where a run comes from: its configuration beside the preset's, its starts, and the weights that played each round."""

from __future__ import annotations

import importlib
import json
import pathlib
import pkgutil
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import configs
from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.report.page.comparisons import label
from epo_jax.report.page.curves import Metrics, read_rows
from epo_jax.report.page.episodes import COLUMNS, EpisodesFile
from epo_jax.rollout import opponents
from epo_jax.run_folder import flatten

_OWN_CONFIG = re.compile(r"(?:.*/)?configs/(\w+)\.py(?::(\w+))?")
# Of a run's own place and length; that they differ says nothing about it.
_UNREMARKABLE = ("workdir",)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The run's configuration, flat. Raises `UserError` where there is no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"there is no run in {folder}: give a run's folder, such as --run=runs/alfshop.")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())[:200]}): restore it.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no configuration: restore it.")
    return found


def read_starts(folder: pathlib.Path, unreadable: list[str]) -> list[dict[str, Any]]:
    """What provenance.jsonl tells, a start each; of damaged lines a sentence in `unreadable`."""
    return [row for _, row in read_rows(folder / "provenance.jsonl", unreadable)]


def weights_after(folder: pathlib.Path, config: Mapping[str, Any], files: Sequence[EpisodesFile]) -> dict[int, str]:
    """Rounds done → the name of the weights then, such as "step-13", as far as evaluations, rounds and checkpoints tell."""
    found = {}
    for file in files:
        versions = {str(row[COLUMNS.index("weights")]) for row in file.rows}
        if file.phase == "evaluation" or (file.phase == "round" and not config.get("async_rounds")):  # a round played ahead has older weights
            if len(versions) == 1 and "" not in versions:
                found[file.round - (file.phase == "round")] = versions.pop()
    for path in _checkpoints(folder):
        position = _read_position(path)
        if position and position.get("phase") == "rounds" and position.get("steps") == 0:
            found[position["round"]] = f"step-{position['steps_before']}"
    return found


def told_weights(rounds_done: int, weights: Mapping[int, str]) -> str:
    """Weights by the rounds that they have learned from, and their name where it is known: "after round 1 (step-13)"."""
    return label(rounds_done) + (f" ({weights[rounds_done]})" if rounds_done and rounds_done in weights else "")


def told_partner(partner: Sequence[Any] | None, weights: Mapping[int, str]) -> list[Any] | None:
    """Who was met ([strategist, weights, actor]): a strategist of an earlier round by the rounds that it has learned from."""
    if partner is None:
        return None
    rounds = [None if name is None else opponents.round_of(name) for name in partner[:2]]
    return [*(name if done is None else told_weights(done, weights) for name, done in zip(partner, rounds, strict=False)), partner[2]]


def origin(
    folder: pathlib.Path, config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]], metrics: Metrics, files: Sequence[EpisodesFile]
) -> dict[str, Any]:
    """{"preset", "config": [[field, value, preset's value or None, differs], …], "starts", "lineage", "data"}."""
    name, preset = _preset(str(starts[0].get("command", "")) if starts else "")
    fields = [
        [field, _told(config[field]), _told(preset[field]) if field in preset else None, _differs(field, config, preset)] for field in sorted(config)
    ]
    return {
        "preset": name,
        "config": fields,
        "starts": [_start(start) for start in starts],
        "lineage": _lineage(folder, config, metrics, files),
        "data": _data(folder),
    }


# --- the preset -------------------------------------------------------------------------------------------------------------------------------


def _preset(command: str) -> tuple[str, dict[str, Any]]:
    """The preset that the command names and its values, as this version has it; the defaults for a configuration that is not the project's.

    A command line in a file is no reason to run a program: only the project's own configurations are read, by their name.
    """
    own = {module.name for module in pkgutil.iter_modules(configs.__path__)} - {"defaults"}
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    given = next((word.partition("=")[2] for word in words if word.startswith(("--config=", "-config="))), "")
    match = _OWN_CONFIG.fullmatch(given)
    if match and match[1] in own:
        get_config = importlib.import_module(f"configs.{match[1]}").get_config
        try:
            values = get_config(match[2]) if match[2] else get_config()
        except (ValueError, TypeError):
            pass  # a preset that this version does not have
        else:
            return f"configs/{match[1]}.py{f':{match[2]}' if match[2] else ''}", flatten(values.to_dict())
    return "configs/defaults.py", flatten(get_defaults().to_dict())


def _differs(field: str, config: Mapping[str, Any], preset: Mapping[str, Any]) -> bool:
    return field not in _UNREMARKABLE and (field not in preset or config[field] != json.loads(json.dumps(preset[field])))


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- starts and weights -----------------------------------------------------------------------------------------------------------------------


def _start(start: Mapping[str, Any]) -> dict[str, Any]:
    versions, devices = start.get("versions"), start.get("devices")
    names = sorted(map(str, devices)) if isinstance(devices, list) else []
    return {
        "time": str(start.get("time", "")),
        "command": str(start.get("command", "")),
        "seed": _told(start.get("seed")),
        "python": str(start.get("python", "")),
        "versions": [[str(name), str(version)] for name, version in versions.items()] if isinstance(versions, dict) else [],
        "devices": [f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)],
    }


def _lineage(folder: pathlib.Path, config: Mapping[str, Any], metrics: Metrics, files: Sequence[EpisodesFile]) -> list[list[str]]:
    """[what, weights, from or to], in the order in which weights came about."""
    weights = COLUMNS.index("weights")
    found = [["begins with", str(config.get("model.source", "?")), ""]]
    if warm := metrics.rows.get("warm_start"):
        found.append(["warm start", f"{max(warm)} optimizer steps", "cloned demonstrations"])
    for file in files:
        versions = ", ".join(sorted({str(row[weights]) for row in file.rows}))
        found.append([_when(file), "an expert" if file.demonstrated else versions, f"played {file.name}"])
    for path in _checkpoints(folder):
        found.append(["checkpoint", _position(path), str(path.parent.relative_to(folder))])
    known = weights_after(folder, config, files)
    kept = {opponents.round_of(path.name.replace("-", " ")): path for path in (folder / "opponents").glob("round-*")}
    for done, path in sorted((done, path) for done, path in kept.items() if done is not None):
        found.append(["kept as an opponent", told_weights(done, known), str(path.relative_to(folder))])
    if (folder / "strategist").is_dir():
        best = _best_round(folder)
        told = "after the last round" if best is None else f"the best: {told_weights(best, known)}"
        found.append(["result", told, "strategist (a Hugging Face folder)"])
    return found


def _best_round(folder: pathlib.Path) -> int | None:
    """After how many rounds the exported weights, the best, were reached, by the newest checkpoint; None where the run keeps none as its best."""
    paths = _checkpoints(folder)
    position = _read_position(paths[-1]) if paths else None
    try:
        return int(position["best"][0]["round"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _when(file: EpisodesFile) -> str:
    if file.phase == "evaluation":
        return f"evaluation after round {file.round}" if file.round else "evaluation before the first round"
    return f"round {file.round}" if file.phase == "round" else f"cycle {file.round}, {file.phase}"


def _checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((folder / "checkpoints").glob("step_*/checkpoint.json"))


def _read_position(path: pathlib.Path) -> dict[str, Any] | None:
    """Where the run stood at a checkpoint; None where that cannot be read."""
    try:
        position = json.loads(path.read_text())["record"]["position"]
        return position | {name: int(position[name]) for name in ("round", "steps", "steps_before")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _position(path: pathlib.Path) -> str:
    position = _read_position(path)
    return f"step-{position['steps_before'] + position['steps']}, {position.get('phase')} {position['round']} done" if position else "damaged"


def _data(folder: pathlib.Path) -> str | None:
    """Of a run on recorded conversations: which file."""
    try:
        record = json.loads((folder / "data.json").read_text())
        return f"{record['file']}, sha256 {record['sha256']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
