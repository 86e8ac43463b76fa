"""examples/slurm/train.sbatch, run as SLURM would run it, with an `srun` and an `scontrol` that write down what they are asked."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "examples" / "slurm" / "train.sbatch"


@pytest.fixture
def slurm(tmp_path):
    """run(code, *flags, **environment): the script in a clone whose training ends with this exit code -> what it did, and the calls."""
    commands = tmp_path / "bin"
    for path, text in {
        commands / "srun": 'printf "srun"; printf " [%s]" "$@"; echo; echo "cores ${SRUN_CPUS_PER_TASK-as srun says}" >&2; exit "$CODE"',
        commands / "scontrol": 'printf "scontrol"; printf " [%s]" "$@"; echo',
        tmp_path / "clone" / ".venv" / "bin" / "python": "exit 0",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(code: int, *flags: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "CODE": str(code), "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(tmp_path / "clone")}
        return subprocess.run(["bash", SCRIPT, *flags], cwd="/", env=environment | changes, capture_output=True, text=True, check=False)

    return run


def test_one_command_for_all_processes(slurm) -> None:
    done = slurm(0, "--config=configs/alfshop.py:llama3_8b", "--config.workdir=/shared/a b")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "srun [--wait=300] [.venv/bin/python] [-m] [epo_jax.train] [--config=configs/alfshop.py:llama3_8b] [--config.workdir=/shared/a b]"
    ]


def test_a_task_gets_the_cores_that_the_job_asked_for(slurm) -> None:
    """Since Slurm 22.05 srun reads SRUN_CPUS_PER_TASK alone; without --cpus-per-task the job has neither."""
    assert slurm(0, "--config=x", SLURM_CPUS_PER_TASK="8").stderr == "cores 8\n"
    assert slurm(0, "--config=x").stderr == "cores as srun says\n"


@pytest.mark.parametrize(("code", "queued"), [(130, True), (75, True), (0, False), (1, False), (2, False)])
def test_only_what_was_asked_to_stop_or_missed_others_goes_back_into_the_queue(slurm, code, queued) -> None:
    done = slurm(code, "--config=x")
    assert done.returncode == code
    assert ("scontrol [requeue] [17]" in done.stdout) == queued


def test_a_mistake_is_one_sentence(slurm, tmp_path) -> None:
    for done, sentence in ((slurm(0), "no configuration"), (slurm(0, "--config=x", SLURM_SUBMIT_DIR=str(tmp_path)), "there is no .venv")):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert sentence in done.stderr


def test_what_it_asks_of_slurm() -> None:
    """One process for each GPU; and the directives stand before the first command, where sbatch stops reading."""
    lines = SCRIPT.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    asked = dict(re.fullmatch(r"#SBATCH --([a-z-]+)=?(\S*)", line).groups() for line in lines[:first_command] if line.startswith("#SBATCH"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert re.fullmatch(r"TERM@\d+", asked["signal"])  # of the processes; B:TERM would reach the script alone
    assert "requeue" in asked and asked["open-mode"] == "append"
