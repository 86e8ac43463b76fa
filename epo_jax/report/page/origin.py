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
from epo_jax.report.page.curves import Metrics, read_rows
from epo_jax.report.page.episodes import COLUMNS, EpisodesFile
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


def read_starts(folder: pathlib.Path) -> list[dict[str, Any]]:
    """What provenance.jsonl tells, a start each."""
    return read_rows(folder / "provenance.jsonl")


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
        found.append([_when(file), versions, f"played {file.name}"])
    for path in sorted((folder / "checkpoints").glob("step_*/checkpoint.json")):
        found.append(["checkpoint", _position(path), str(path.parent.relative_to(folder))])
    for path in sorted((folder / "opponents").glob("round-*")):
        found.append(["kept as an opponent", path.name, str(path.relative_to(folder))])
    if (folder / "strategist").is_dir():
        found.append(["result", "after the last round", "strategist (a Hugging Face folder)"])
    return found


def _when(file: EpisodesFile) -> str:
    if file.phase == "evaluation":
        return f"evaluation after round {file.round}" if file.round else "evaluation before the first round"
    return f"round {file.round}" if file.phase == "round" else f"cycle {file.round}, {file.phase}"


def _position(path: pathlib.Path) -> str:
    try:
        position = json.loads(path.read_text())["record"]["position"]
        return f"step-{int(position['steps_before']) + int(position['steps'])}, {position['phase']} {int(position['round'])} done"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _data(folder: pathlib.Path) -> str | None:
    """Of a run on recorded conversations: which file."""
    try:
        record = json.loads((folder / "data.json").read_text())
        return f"{record['file']}, sha256 {record['sha256']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
