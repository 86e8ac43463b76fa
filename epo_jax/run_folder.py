"""The folder of one run: its configuration, provenance, trajectories, metrics and checkpoints.

    config.json        the configuration; the same command continues the run, another configuration is refused
    provenance.jsonl   one line a start: command line, versions, devices, seed, time
    trajectories/      round_000.jsonl, …: every episode
    evaluation/        round_000.jsonl (before the first round), …
    metrics.jsonl, tensorboard/, wandb/ (where it is asked for)
    inspections/       StepAgent: an expert's trajectories, and what the policy would have done at each of their states
    page.html          what the run did, to look at (python -m epo_jax.report)
    curve.png          each environment's main figure on the held-out tasks by round
    api_cache.sqlite   what models behind an API answered; asking the same again costs nothing
    api_spent.sqlite   what they cost, over all starts
    data.json          a run on recorded conversations: which file, and what was left out of it
    checkpoints/       orbax
    reference/         frozen weights that the KL term compares with, where one does
    critic/            PPO's critic, where there is one
    tokenizer/         the strategist's, for export
    strategist/        the result as a Hugging Face folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from epo_jax.errors import UserError
from epo_jax.hosts import exchange

# A run may be continued for more rounds, elsewhere, on another mesh, with another server of the same models, at other prices and limits:
# these fields may differ from the first start.
MAY_CHANGE_OF_AN_API = (
    "base_url", "api_key_variable", "timeout_s", "deadline_s", "retries", "concurrency", "requests_per_minute", "tokens_per_minute",
    "price_per_million_prompt", "price_per_million_completion", "breaker_failures", "breaker_pause_s", "breaker_max_pauses",
    "budget_tokens", "budget_money", "structured",
)  # fmt: skip
MAY_CHANGE = (
    "workdir", "name", "rounds", "tensorboard", "mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor", "checkpoint.keep", "checkpoint.every_steps",
    "checkpoint.keep_every", "checkpoint.background", "api.cache", "api.offline", "compilation_cache", "rollout.exact", "rollout.workers",
    "preemption_notice", "wandb", "distributed.coordinator", "distributed.processes", "distributed.process", "distributed.start_timeout_s",
    *(f"{section}.{field}" for section in ("actor_api", "judge_api", "evaluator_api") for field in MAY_CHANGE_OF_AN_API),
)  # fmt: skip
SEEN_WITHIN_S = 90.0  # in which a network file system shows at one machine what another has written
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    path: pathlib.Path
    resumed: bool

    @classmethod
    def open(cls, config: ConfigDict) -> RunFolder:
        """Makes the folder, or checks that it belongs to this configuration.

        Raises `UserError` if it holds a run of another configuration or cannot be written; nothing is changed then. Of several processes the first
        one does it, and all wait for it.
        """
        path = folder_of(config)
        resumed = exchange.by_first(lambda: _prepare(config))
        if exchange.count() > 1:
            _check_shared(path)
        return cls(path, resumed)

    def trajectories(self, round: int) -> pathlib.Path:
        return self.path / "trajectories" / f"round_{round:03d}.jsonl"

    def evaluation(self, rounds_done: int) -> pathlib.Path:
        return self.path / "evaluation" / f"round_{rounds_done:03d}.jsonl"

    @property
    def curve(self) -> pathlib.Path:
        return self.path / "curve.png"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> pathlib.Path:
        return self.path / "tokenizer"

    @property
    def export(self) -> pathlib.Path:
        return self.path / "strategist"


def folder_of(config: ConfigDict) -> pathlib.Path:
    """Where a run of this configuration writes."""
    return pathlib.Path(config.workdir or f"runs/{config.name}")


def _prepare(config: ConfigDict) -> bool:
    """Makes or checks the folder, and says whether its run is continued."""
    path, resumed = examine(config)
    try:
        if not resumed:
            for name in ("trajectories", "evaluation"):
                (path / name).mkdir(parents=True, exist_ok=True)
            write_whole(path / "config.json", json.dumps(flatten(config.to_dict()), indent=1, sort_keys=True))
        for scratch in path.glob("*/.*.partial"):  # of a start that was killed while it wrote a file of episodes
            scratch.unlink()
        with open(path / "provenance.jsonl", "a") as file:
            file.write(json.dumps(provenance(config)) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the run folder {path}: {error.strerror or error}.") from error
    return resumed


def _check_shared(path: pathlib.Path) -> None:
    """Of several processes: raises `UserError` at all of them where one does not see in the folder what the first one writes into it."""
    sign, word = path / ".shared", exchange.by_first(lambda: os.urandom(8).hex())

    def look() -> None:
        deadline = time.monotonic() + SEEN_WITHIN_S
        while not (sign.exists() and sign.read_text() == word):
            if time.monotonic() > deadline:
                raise UserError(f"the run folder {path} is not shared: what the first process writes there, this one does not see; give a folder that is.")
            with contextlib.suppress(OSError):
                os.listdir(path)  # a network file system may remember for some seconds that a file was not there
            time.sleep(0.05)

    exchange.by_first(lambda: write_whole(sign, word))
    try:
        exchange.agreed(look)
    finally:
        exchange.by_first(lambda: sign.unlink(missing_ok=True))


def examine(config: ConfigDict) -> tuple[pathlib.Path, bool]:
    """(the folder of a run of this configuration, whether it holds one that would be continued); nothing is written.

    Raises `UserError` where it holds a run of another configuration, or something else.
    """
    path = folder_of(config)
    stored = path / "config.json"
    try:
        if stored.exists():
            _check_same(json.loads(stored.read_text()), flatten(config.to_dict()), path)
            return path, True
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"the folder {path} is not empty and holds no run: choose another with --config.workdir=DIR.")
    except json.JSONDecodeError as error:
        raise UserError(f"{stored} is damaged ({error}): restore it, or choose another folder with --config.workdir=DIR.") from error
    except OSError as error:
        raise UserError(f"cannot read the run folder {path}: {error.strerror or error}.") from error
    return path, False


def run_of(checkpoint: pathlib.Path) -> pathlib.Path:
    """The folder of the run that `checkpoint` is, or whose folder of checkpoints it is. Raises `UserError` where there is no whole run."""
    run = checkpoint if (checkpoint / "checkpoints").is_dir() else checkpoint.parent
    if not (run / "checkpoints").is_dir():
        raise UserError(f"there is no run at {checkpoint}: give a run's folder, such as runs/alfshop.")
    if not (run / "tokenizer").is_dir():
        raise UserError(f"the run at {run} has no folder tokenizer: it is not whole.")
    return run


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration as one level, keys joined by dots; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What it takes to know how a start of the run came about."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "seed": config.seed,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
    }


def _check_same(stored: dict[str, Any], values: dict[str, Any], path: pathlib.Path) -> None:
    differing = sorted(
        name for name in stored.keys() | values.keys() if stored.get(name) != values.get(name) and name not in MAY_CHANGE
    )
    if differing:
        name = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"the folder {path} holds a run with {name}={stored.get(name)!r}, not {values.get(name)!r}{more}: "
            "give the same values to continue it, or another folder with --config.workdir=DIR."
        )


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either whole or as it was before. Raises OSError."""
    scratch = path.with_name(path.name + ".partial")
    with open(scratch, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
