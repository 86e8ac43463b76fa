"""Whole runs of the main command as one, two and four processes: the same run, whoever plays what, and also where a process is lost on the way."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from epo_jax.checkpoint import restore_params
from epo_jax.trajectory import Trajectory, read_jsonl
from tests.hosts.processes import started
from tests.stepagent.test_run import TINY as STEPAGENT
from tests.test_faulty_round import FaultyModel
from tests.tiny_run import TINY, metrics

pytestmark = pytest.mark.slow
SECONDS = 400
# Four devices in all. 6 episodes and 2 held-out tasks: with four processes some have more than others, and some have none.
SMALL = TINY | {
    "mesh.fsdp": -1,
    "mesh.data": 1,
    "model.architecture.tokenizer_games": 10,
    "environments.alfworld.max_turns": 3,
    "environments.webshop.max_turns": 2,
    "rollout.episodes": 6,
    "learn.rows": 4,
    "learn.learning_rate": 1e-4,
    "warm_start.episodes": 8,
    "warm_start.rows": 4,
    "rounds": 2,
    "evaluate.tasks": 1,
    "tensorboard": False,
}


def run(folder: pathlib.Path, count: int, *, each=(), config: str = "configs/alfshop.py", settings=SMALL, **changes):
    settings = settings | changes
    arguments = [f"--config={config}", f"--config.workdir={folder}", *(f"--config.{name}={value}" for name, value in settings.items())]
    return started(count, 4 // count, "epo_jax.train", *arguments, each=each)


def finished(folder: pathlib.Path, count: int, **options) -> pathlib.Path:
    with run(folder, count, **options) as processes:
        assert processes.wait(SECONDS) == [0] * count, "".join(processes.output(index) for index in range(count))
        for index in range(1, count):
            assert not processes.said(index)  # the first one speaks for all
    return folder


def learned(folder: pathlib.Path) -> dict:
    _, params, record = restore_params(folder / "checkpoints")
    assert record["position"]["round"] == SMALL["rounds"]
    return params


def without_scores(trajectory: Trajectory) -> dict:
    """What was played, without the numbers that depend on the last bits of a sum."""
    record = trajectory.to_dict()
    scores = ("logprobs", "advantage")
    for said in (record["turns"], record["extra"].get("inspected", [])):
        said[:] = [{name: value for name, value in each.items() if name not in scores} for each in said]
    return record


PLAYED = ("trajectories/round_000.jsonl", "trajectories/round_001.jsonl", "evaluation/round_000.jsonl", "evaluation/round_002.jsonl")


def same_run(folder: pathlib.Path, expected: pathlib.Path, files: Sequence[str] = PLAYED) -> None:
    """The same episodes with the same tokens (a file of one process has them as they ended), and parameters equal to 1e-6."""
    for name in files:
        ours, theirs = (sorted(read_jsonl(each / name), key=lambda played: played.extra.get("index", 0)) for each in (folder, expected))
        assert [without_scores(each) for each in ours] == [without_scores(each) for each in theirs], name
        for one, other in zip(ours, theirs, strict=True):
            for turn, as_expected in zip(one.turns, other.turns, strict=True):
                np.testing.assert_allclose(turn.logprobs, as_expected.logprobs, atol=1e-5)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0), learned(folder), learned(expected))
    assert not list((folder / "trajectories").glob(".*"))
    steps = [row["step"] for row in metrics(folder, "step")]
    assert steps == sorted(set(steps)) and len(steps) == 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_make_the_run_of_one(alone, tmp_path, count):
    same_run(finished(tmp_path / "run", count), alone)


@pytest.mark.parametrize("lost, again", [(1, 2), (0, 4)])
def test_a_process_that_is_lost_ends_the_run_and_the_same_command_continues_it(alone, tmp_path, lost, again):
    """Killed after its first evaluation; with as many processes afterwards, and with others."""
    with run(tmp_path / "run", 2) as processes:
        processes.wait_for(0, "evaluation after 0 rounds", SECONDS)
        processes.all[lost].send_signal(signal.SIGKILL)
        codes = processes.wait(60)
        assert codes[lost] == -9 and codes[1 - lost] not in (0, -9)
        assert f"epo_jax: process {lost} of 2 (on " in processes.output(1 - lost)
    same_run(finished(tmp_path / "run", again), alone)


def test_sigterm_to_one_process_saves_and_stops_all(alone, tmp_path):
    with run(tmp_path / "run", 2) as processes:
        processes.wait_for(0, "warm start 2/2", SECONDS)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait(SECONDS) == [130, 130], processes.output(0)
        assert "stopped and saved in" in processes.output(0)
    same_run(finished(tmp_path / "run", 2), alone)


@pytest.mark.parametrize("preset", ["implicit", "inverse"])
def test_stepagent_of_two_processes_is_that_of_one(tmp_path, preset):
    """Each inspects its share of the experts' trajectories; discriminator and critic learn on the mesh of both."""
    learned_here = {"mesh.fsdp": -1, "mesh.data": 1, "stepagent.experts": 7, "learn.learning_rate": 1e-4, "warm_start.learning_rate": 1e-4}
    options = {"config": f"configs/stepagent.py:{preset}", "settings": STEPAGENT | learned_here}
    files = [*PLAYED[2:], "inspections/cycle_000.jsonl", "inspections/cycle_001.jsonl"]
    same_run(finished(tmp_path / "two", 2, **options), finished(tmp_path / "one", 1, **options), files)


def test_two_processes_that_play_ahead_make_the_run_of_one(tmp_path):
    ahead = {"async_rounds": 1, "learn.clip_low": 0.2, "learn.clip_high": 0.2}
    same_run(finished(tmp_path / "two", 2, **ahead), finished(tmp_path / "one", 1, **ahead))


def test_a_judge_that_is_down_for_one_process_masks_what_that_process_has(tmp_path):
    api = {"judge": "openai", "rounds": 1, "judge_api.retries": 0, "judge_api.breaker_failures": 1000, "api.cache": "none", "learn.rows": 4}
    with FaultyModel(0.0) as up:
        down = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}  # the discard port: nobody listens
        with run(tmp_path / "run", 2, each=[{"OPENAI_BASE_URL": up.url}, down], **api) as processes:
            assert processes.wait(SECONDS) == [0, 0], processes.output(0) + processes.output(1)
    played = read_jsonl(tmp_path / "run" / "trajectories" / "round_000.jsonl")
    assert len(played) == 6
    assert [(each.masked or "").startswith("judge openai") for each in played] == [False, True] * 3
    assert all(turn.advantage is not None for each in played[::2] for turn in each.turns)
    [row] = metrics(tmp_path / "run", "round")
    assert row["judge_failed"] == 3 and row["masked"] == 3


def test_a_budget_that_one_process_has_spent_stops_all_saved(tmp_path):
    api = {"judge": "openai", "rounds": 1, "judge_api.budget_tokens": 100, "judge_api.max_tokens": 8, "api.cache": "none"}
    with FaultyModel(0.0) as up:
        with run(tmp_path / "run", 2, each=[{"OPENAI_BASE_URL": up.url}] * 2, **api) as processes:
            assert processes.wait(SECONDS) == [2, 2], processes.output(0)
            assert "budget" in processes.output(0) + processes.output(1)
    assert len(read_jsonl(tmp_path / "run" / "trajectories" / "round_000.jsonl")) == 6
