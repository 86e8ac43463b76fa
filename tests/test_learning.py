"""That the embedded default learns, and that it is the reward it learns from: the same run with permuted advantages does not."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from epo_jax.evaluation import Estimate, paired_difference, successes
from epo_jax.trajectory import read_jsonl

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def gain(folder: pathlib.Path, *changes: str) -> Estimate:
    """Success on the held-out households after the main command's rounds minus before, paired by task."""
    command = [sys.executable, "-m", "epo_jax.train", "--config=configs/alfshop.py", f"--config.workdir={folder}", *changes]
    environment = {name: value for name, value in os.environ.items() if name not in ("ALFWORLD_DATA", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (successes(read_jsonl(path)) for path in sorted((folder / "evaluation").iterdir()))
    assert before.keys() == after.keys()
    return paired_difference(before, after)


@pytest.mark.slow
@pytest.mark.learning
def test_success_on_held_out_households_rises_and_without_its_reward_does_not(tmp_path: pathlib.Path) -> None:
    learned = gain(tmp_path / "learned")
    control = gain(tmp_path / "control", "--config.credit.permute=True")
    assert learned.low > 0.0, learned
    assert control.low <= 0.0, control
    assert learned.low > control.mean, (learned, control)
