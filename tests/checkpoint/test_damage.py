"""Checkpoints that are damaged, and those of a process that was killed: they are named, and the one before is used."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from epo_jax import checkpoint, checkpoint_files
from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from tests.checkpoint.states import abstract, assert_same, make_state, newest_file

REPOSITORY = pathlib.Path(checkpoint.__file__).resolve().parent.parent


# --- damage -----------------------------------------------------------------------------------------------------------------------------------


def truncate(folder: pathlib.Path) -> None:
    path = newest_file(folder, 2)
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(folder: pathlib.Path) -> None:
    path = newest_file(folder, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_a_file(folder: pathlib.Path) -> None:
    newest_file(folder, 2).unlink()


def half_a_record(folder: pathlib.Path) -> None:
    path = folder / "step_0000000002" / "checkpoint.json"
    os.truncate(path, path.stat().st_size // 2)


def another_position(folder: pathlib.Path) -> None:
    """One bit of the record, which is JSON still."""
    path = folder / "step_0000000002" / "checkpoint.json"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3'))


def no_record(folder: pathlib.Path) -> None:
    (folder / "step_0000000002" / "checkpoint.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_file, half_a_record, another_position, no_record])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    damage(tmp_path)
    state, record = checkpoints.restore(abstract(make_state(0)))
    assert record == {"step": 1}
    assert_same(state, make_state(1))
    assert len(said) == 1 and "step_0000000002 is damaged" in said[0]
    assert checkpoints.latest() == 1
    with pytest.raises(UserError, match="step_0000000002 is damaged"):
        checkpoints.restore(abstract(make_state(0)), step=2)
    checkpoints.save(2, make_state(3), {"step": 2})  # the run goes on and writes the step anew
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(3))


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # what else orbax was reading when it failed
def test_damage_beyond_the_checksums_is_passed_over_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "CHECKSUM_LIMIT", 0)
    monkeypatch.setattr(checkpoint_files, "LARGE_FILE", 0)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    for path in (tmp_path / "step_0000000002" / "state").rglob("manifest.ocdbt"):
        path.write_bytes(b"\x00" * path.stat().st_size)  # same size
    state, record = checkpoints.restore(abstract(make_state(0)))
    assert record == {"step": 1} and "step_0000000002 cannot be read" in said[0]
    assert_same(state, make_state(1))


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, say=lambda _: None)
    checkpoints.save(1, make_state(1), {})
    (tmp_path / "step_0000000005").mkdir()
    checkpoints.save(2, make_state(2), {})
    assert checkpoints.latest() == 2 and checkpoints.steps() == [2, 5]


def test_nothing_usable_is_told(tmp_path):
    with pytest.raises(UserError, match="no usable checkpoint"):
        Checkpoints(tmp_path / "absent").restore(abstract(make_state(0)))
    Checkpoints(tmp_path).save(2, make_state(1), {})
    truncate(tmp_path)
    with pytest.raises(UserError, match="no usable checkpoint"):
        Checkpoints(tmp_path, say=lambda _: None).restore(abstract(make_state(0)))
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        Checkpoints(tmp_path).restore(abstract(make_state(0)), step=9)
    with pytest.raises(UserError, match="mounted"):
        Checkpoints("gs://bucket/run")


# --- kills ------------------------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from epo_jax import checkpoint
from tests.checkpoint.states import make_state
folder, moment = sys.argv[1:3]
checkpoints = checkpoint.Checkpoints(folder, keep=1)
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(1, make_state(1), {"step": 1})
step = 2
if moment == "arrays":       # orbax has written some of the arrays
    import threading
    from orbax.checkpoint import v1 as ocp
    real = ocp.save_async
    def save(path, state):
        def watch():
            while not any(os.path.isfile(os.path.join(d, f)) for d, _, fs in os.walk(folder + "/.partial-step_0000000002") for f in fs):
                pass
            die()
        threading.Thread(target=watch).start()
        return real(path, state)
    checkpoint.ocp.save_async = save
elif moment == "record":     # the arrays are there, the record is not
    checkpoint.write_and_sync = die
elif moment == "rename":     # everything is there under the other name
    checkpoints._put_in_place = die
elif moment == "replace":    # between the two renames of a replacement
    step, rename = 1, os.rename
    os.rename = lambda a, b: die() if ".partial" in str(a) else rename(a, b)
elif moment == "delete":     # in the middle of deleting the oldest
    import shutil
    real = shutil.rmtree
    def rmtree(path, **k):
        if ".deleted-step_0000000001" in str(path) and os.path.exists(path):
            os.unlink(os.path.join(path, "checkpoint.json")); die()
        real(path, **k)
    shutil.rmtree = rmtree
checkpoints.save(step, make_state(2), {"step": 2})
"""


def start_killed(folder: pathlib.Path, moment: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), moment], env=environment, stderr=subprocess.DEVNULL
    )


def test_a_kill_at_any_moment_leaves_a_usable_checkpoint(tmp_path):
    survivors = {"arrays": 1, "record": 1, "rename": 1, "replace": 1, "delete": 2}
    started = {moment: start_killed(tmp_path / moment, moment) for moment in survivors}
    for moment, process in started.items():
        assert process.wait(120) == -signal.SIGKILL, moment
    for moment, value in survivors.items():
        said: list[str] = []
        checkpoints = Checkpoints(tmp_path / moment, keep=1, say=said.append)
        state, record = checkpoints.restore(abstract(make_state(0)))
        assert record == {"step": value} and not said, moment
        assert_same(state, make_state(value))
        checkpoints.save(5, make_state(5), {"step": 5})  # and the run goes on, in a folder that is clean again
        assert os.listdir(tmp_path / moment) == ["step_0000000005"], moment
        assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(5))


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """A process that saves without end, killed after a random time; every survivor is whole and newer than nothing."""
    program = KILLED.split("step = 2")[0] + "step = 1\nwhile True:\n    step += 1\n    checkpoints.save(step, make_state(step), {'step': step})\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    chooser = np.random.default_rng(0)
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-c", program, str(folder), "none"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while not (folder / "step_0000000002").exists() and process.poll() is None:
            pass
        try:
            process.wait(float(chooser.uniform(0, 1)))
            pytest.fail("the process ended by itself")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        state, record = Checkpoints(folder).restore(abstract(make_state(0)))
        assert record["step"] >= 1
        assert_same(state, make_state(record["step"]))
