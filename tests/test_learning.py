"""That an embedded default learns in all that it plays, and that it is the reward it learns from: with permuted advantages it does not."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from epo_jax.evaluation import MAIN_FIGURES, Estimate, paired_difference, values_of
from epo_jax.trajectory import by_environment, read_jsonl

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def gains(config: str, folder: pathlib.Path, *changes: str) -> dict[str, Estimate]:
    """Environment → its main figure on held-out tasks after the rounds of `config` minus before, paired by task.

    In a shop that is the reward: half a purchase is worth something, and success, all points right, is rare.
    """
    command = [sys.executable, "-m", "epo_jax.train", f"--config=configs/{config}.py", f"--config.workdir={folder}", *changes]
    environment = {name: value for name, value in os.environ.items() if name not in ("ALFWORLD_DATA", "WEBSHOP_DATA", "SOTOPIA_DATA", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    evaluations = sorted((folder / "evaluation").iterdir())
    before, after = read_jsonl(evaluations[0]), read_jsonl(evaluations[-1])
    return {
        name: paired_difference(values_of(before, name, MAIN_FIGURES[name]), values_of(after, name, MAIN_FIGURES[name]))
        for name in by_environment(before)
    }


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("config", ["alfshop"])
def test_held_out_tasks_are_done_better_and_without_their_reward_they_are_not(config: str, tmp_path: pathlib.Path) -> None:
    learned = gains(config, tmp_path / "learned")
    control = gains(config, tmp_path / "control", "--config.credit.permute=True")
    for name in learned:
        assert learned[name].low > 0.0, (name, learned)
        assert control[name].low <= 0.0, (name, control)
        assert learned[name].low > control[name].mean, (name, learned, control)
