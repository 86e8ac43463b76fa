"""That the embedded default learns in both environments, and that it is the reward it learns from: with permuted advantages it does not."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from epo_jax.evaluation import Estimate, paired_difference, values_of
from epo_jax.trajectory import read_jsonl

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def gains(folder: pathlib.Path, *changes: str) -> dict[str, Estimate]:
    """Environment → its figure on held-out tasks after the main command's rounds minus before, paired by task.

    In a shop that is the reward: half a purchase is worth something, and success, all points right, is rare.
    """
    command = [sys.executable, "-m", "epo_jax.train", "--config=configs/alfshop.py", f"--config.workdir={folder}", *changes]
    environment = {name: value for name, value in os.environ.items() if name not in ("ALFWORLD_DATA", "WEBSHOP_DATA", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (read_jsonl(path) for path in sorted((folder / "evaluation").iterdir()))
    figures = {"alfworld": "success", "webshop": "reward"}
    return {name: paired_difference(values_of(before, name, figure), values_of(after, name, figure)) for name, figure in figures.items()}


@pytest.mark.slow
@pytest.mark.learning
def test_success_on_held_out_tasks_rises_and_without_its_reward_does_not(tmp_path: pathlib.Path) -> None:
    learned = gains(tmp_path / "learned")
    control = gains(tmp_path / "control", "--config.credit.permute=True")
    for name in learned:
        assert learned[name].low > 0.0, (name, learned)
        assert control[name].low <= 0.0, (name, control)
        assert learned[name].low > control[name].mean, (name, learned, control)
