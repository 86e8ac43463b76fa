"""The figures of metrics.jsonl in Weights & Biases besides, where it is installed and asked for.

    pip install wandb; python -m epo_jax.train --config=configs/alfshop.py --config.wandb=PROJECT

Names are TensorBoard's. A run that is continued goes on in the same wandb run, whose id stays in the run's folder. Without the network,
WANDB_MODE=offline keeps everything in DIR/wandb, from where `wandb sync` sends it later.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import uuid
from collections.abc import Mapping

from ml_collections import ConfigDict

from epo_jax.errors import UserError
from epo_jax.run_folder import flatten, write_whole

KINDS = ("warm_start", "step", "round", "pass", "evaluation")  # of rows; each counts its own steps


def check(config: ConfigDict) -> None:
    """Raises `UserError` where wandb is asked for and not installed."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb is asked for and not installed: pip install wandb, or leave out --config.wandb (TensorBoard has the same).")


class WandbRun:
    """One wandb run, from here on and of earlier starts in the same folder."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path) -> None:
        """Raises `UserError` where wandb refuses: no key, no such project, no server."""
        check(config)
        import wandb  # an optional package, and slow to import

        path = folder / "wandb_id"
        try:
            if not path.exists():
                write_whole(path, uuid.uuid4().hex[:12])
            self._run = wandb.init(
                project=config.wandb,
                id=path.read_text().strip(),
                resume="allow",
                name=folder.name,
                dir=str(folder),
                config=flatten(config.to_dict()),
                settings=wandb.Settings(console="off", silent=True),
            )
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"wandb refuses: {reason}. Log in with `wandb login`, or set WANDB_MODE=offline, or leave out --config.wandb.") from error
        metrics = folder / "metrics.jsonl"
        self._rows = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
        for kind in KINDS:
            self._run.define_metric(f"{kind}/step")
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")

    def write(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
        """A row of metrics.jsonl, under its number there, so that starts without a network append to each other too.

        What is no number, or not finite, is left out, as in TensorBoard.
        """
        self._rows += 1
        known = {f"{kind}/{name}": value for name, value in values.items() if not isinstance(value, str) and math.isfinite(value)}
        self._run.log(known | {f"{kind}/step": step}, step=self._rows)

    def close(self) -> None:
        """Waits until everything has arrived."""
        self._run.finish()
