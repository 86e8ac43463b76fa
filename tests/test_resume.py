"""A run that is killed at any moment goes on, with the same command, to the same bits as the run that was left alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from epo_jax import checkpoint
from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.step import Step
from epo_jax.rollout import keep
from epo_jax.train import Run
from epo_jax.trajectory import read_jsonl
from tests.tiny_run import TINY, tiny

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# On one device, where programs would run over few or many rows as it comes; every phase is there, and a checkpoint after every optimizer step.
SHORT = {
    "rounds": 1, "rollout.episodes": 12, "rollout.slots": 4, "learn.rows": 2, "learn.accumulation": 2, "warm_start.episodes": 4,
    "warm_start.rows": 2, "evaluate.tasks": 2, "checkpoint.every_steps": 1, "tensorboard": False,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # what one device saved may lie wherever this process puts it


def what_it_came_to(folder: pathlib.Path) -> dict[str, object]:
    """Everything that two runs must agree on: the whole state of the newest checkpoint, every episode, and what is exported."""
    checkpoints = Checkpoints(folder / "checkpoints")
    newest = checkpoints.latest()
    state = ocp.load(folder / "checkpoints" / f"step_{newest:010d}" / "state")
    position = checkpoints.read_record(newest)["position"]
    episodes = {f"{kind}/{path.name}": sorted(map(repr, read_jsonl(path))) for kind in ("trajectories", "evaluation") for path in (folder / kind).iterdir()}
    return {
        "state": {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]},
        "position": {name: position[name] for name in ("phase", "round", "steps", "steps_before")},
        "episodes": episodes,
        "exported": (folder / "strategist" / "model.safetensors").read_bytes(),
    }


def assert_same(folder: pathlib.Path, other: pathlib.Path) -> None:
    one, two = what_it_came_to(folder), what_it_came_to(other)
    assert [name for name in one if one[name] != two[name]] == []


def phase(folder: pathlib.Path) -> str:
    """Where a run that was killed stood, by what it left."""
    steps = sorted((folder / "checkpoints").glob("step_*"))
    if any((folder / "checkpoints").glob(".partial-*")):
        return "saving"
    if not steps:
        return "before the first checkpoint"
    try:
        position = Checkpoints(folder / "checkpoints", say=lambda _: None).read_record()["position"]
    except UserError:  # the only one was torn
        return "before the first whole checkpoint"
    return f"{position['phase']}, round {position['round']}, step {position['steps']}"


# --- three kills at chosen moments ---------------------------------------------------------------------------------------------------------------

# A process dies before the so-many-th call of one of these.
KILLS = {
    "while saving": (checkpoint, "write_and_sync", 1),
    "in the middle of a round": (keep, "append_jsonl", 7),  # four episodes of the evaluation, and two of the round
    "between two steps": (Step, "__call__", 2),
}


def _run(folder: str, programs: str, changes: dict[str, object], flags: str, kill: str | None) -> None:
    """The run in a process of its own, on one device, as the main command makes it."""
    os.environ["XLA_FLAGS"] = flags
    if kill is not None:
        owner, name, count = KILLS[kill]
        real, calls = getattr(owner, name), itertools.count(1)

        def deadly(*arguments: object, **options: object) -> object:
            if next(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(owner, name, deadly)
    with StopRequest() as stop:
        try:
            Run(tiny(folder, **SHORT | changes, compilation_cache=programs), stop).everything()
        except Stopped:
            sys.exit(130)


class Starts:
    """Starts of runs that share their compiled programs, in processes forked from one that has imported everything."""

    def __init__(self, folder: pathlib.Path, flags: str = "", **changes: object) -> None:
        self.folder, self._flags, self._changes = folder, flags, changes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.tiny_run"])

    def begin(self, name: str, kill: str | None = None) -> multiprocessing.Process:
        arguments = (str(self.folder / name), str(self.folder / "programs"), self._changes, self._flags, kill)
        process = self._context.Process(target=_run, args=arguments)
        process.start()
        return process

    def finish(self, name: str, kill: str | None = None) -> int | None:
        """The exit code."""
        process = self.begin(name, kill)
        process.join()
        return process.exitcode


def test_killed_while_saving_in_the_middle_of_a_round_and_between_steps(tmp_path):
    runs = Starts(tmp_path, "--xla_backend_optimization_level=0")
    assert runs.finish("unbroken") == 0
    for kill in KILLS:
        assert runs.finish("killed", kill) == -signal.SIGKILL, kill
    assert runs.finish("killed") == 0
    assert_same(tmp_path / "killed", tmp_path / "unbroken")


# --- many stops at random -----------------------------------------------------------------------------------------------------------------------


def lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def processor_seconds(process: multiprocessing.Process) -> float:
    """What a process has worked so far: where it stands, however busy the machine is."""
    try:
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop_at_random(folder: pathlib.Path, number: signal.Signals, times: int, **changes: object) -> dict[str, object]:
    """Runs that are stopped `times` times in all, each of which must come to what an unbroken one came to; what was seen of the stops."""
    runs = Starts(folder, **changes)
    assert runs.finish("compiled") == runs.finish("unbroken") == 0
    assert_same(folder / "compiled", folder / "unbroken")  # and so two that nobody stopped
    unbroken, whole = runs.begin("measured"), 0.0
    while (worked := processor_seconds(unbroken)) < math.inf and unbroken.is_alive():
        whole = worked
        time.sleep(0.01)
    seed = int.from_bytes(os.urandom(4))
    chooser, where, seconds, number_of_runs = np.random.default_rng(seed), [], [], 0
    while len(where) < times:
        name, number_of_runs = f"stopped_{number_of_runs}", number_of_runs + 1
        while True:
            process = runs.begin(name)
            if len(where) < times:  # else this one is left alone
                limit = chooser.uniform(0, whole)
                while processor_seconds(process) < limit and process.is_alive():
                    time.sleep(0.001)
                asked = time.monotonic()
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(process.pid, number)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode in (-number, 130), (process.exitcode, seed)
            seconds.append(time.monotonic() - asked)
            where.append(phase(folder / name))
        assert_same(folder / name, folder / "unbroken")
    seen = {place: where.count(place) for place in sorted(set(where))}
    return {"stops": len(where), "runs": number_of_runs, "longest_s": round(max(seconds), 2), "where": seen}


@pytest.mark.slow
@pytest.mark.parametrize("slots", [4, 12])
def test_twenty_kills_at_random_moments(tmp_path, slots):
    print(json.dumps(stop_at_random(tmp_path, signal.SIGKILL, 20, **{"rollout.slots": slots})))


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_leaves_within_half_a_minute(tmp_path):
    seen = stop_at_random(tmp_path, signal.SIGTERM, 8)
    print(json.dumps(seen))
    assert seen["longest_s"] < 30


# --- elsewhere ----------------------------------------------------------------------------------------------------------------------------------


def command(folder: pathlib.Path, devices: int, **changes: object) -> subprocess.Popen[bytes]:
    """The main command as users give it."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    arguments = [f"--config.{name}={value}" for name, value in (TINY | SHORT | {"workdir": str(folder)} | changes).items()]
    return subprocess.Popen(
        [sys.executable, "-m", "epo_jax.train", f"--config={REPOSITORY}/configs/alfshop.py", *arguments],
        env=environment, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_it_goes_on_on_other_devices_and_another_mesh(tmp_path):
    """Eight devices for data, then four that divide the weights, then one."""
    changes = {"rollout.slots": 8, "learn.rows": 8, "learn.accumulation": 1, "warm_start.rows": 8, "rollout.episodes": 16}
    folder = tmp_path / "run"
    played, saved = folder / "trajectories" / "round_000.jsonl", folder / "checkpoints" / "step_0000000003"
    for devices, mesh, moment in (
        (8, {"mesh.data": -1, "mesh.fsdp": 1}, lambda: lines(played) >= 3),
        (4, {"mesh.data": 1, "mesh.fsdp": -1}, saved.exists),  # after the round's first step
    ):
        process = command(folder, devices, **changes, **mesh)
        while not moment():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.kill()
        process.wait()
    process = command(folder, 1, **changes)
    assert process.wait() == 0, process.stderr.read()
    devices = [len(json.loads(line)["devices"]) for line in (folder / "provenance.jsonl").read_text().splitlines()]
    assert devices == [8, 4, 1]
    assert len(read_jsonl(played)) == 16
    assert (folder / "strategist" / "model.safetensors").exists()
