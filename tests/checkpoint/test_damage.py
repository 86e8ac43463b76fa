"""Checkpoints that are damaged, and those of a process that was killed: they are named, and the one before is used."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest

from epo_jax import checkpoint, checkpoint_files
from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.errors import UserError
from tests.checkpoint.states import abstract, assert_same, make_state, newest_file

REPOSITORY = pathlib.Path(checkpoint.__file__).resolve().parent.parent


# --- damage -----------------------------------------------------------------------------------------------------------------------------------


def truncate(folder: pathlib.Path) -> None:
    path = newest_file(folder, 2)
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(folder: pathlib.Path, step: int = 2) -> None:
    path = newest_file(folder, step)
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
def test_damage_beyond_the_checksums_is_passed_over_too(tmp_path):
    """It was there before the checksums were: they are right, and orbax cannot read it."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    for path in (tmp_path / "step_0000000002" / "state").rglob("manifest.ocdbt"):
        path.write_bytes(b"\x00" * path.stat().st_size)
    newest = tmp_path / "step_0000000002"
    (newest / "checkpoint.json").write_bytes(checkpoint_files.contents(newest, {"step": 2}, 2))
    assert checkpoints.latest() == 2
    state, record = checkpoints.restore(abstract(make_state(0)))
    assert record == {"step": 1} and len(said) == 1
    assert said[0].startswith("The checkpoint") and "step_0000000002 cannot be read" in said[0]
    assert_same(state, make_state(1))
    with pytest.raises(UserError, match="step_0000000002 cannot be read"):
        restore_params(tmp_path)


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, checkpoint_files.BLOCK, 65 << 20, (66 << 20) - 1])
def test_one_bit_of_a_large_file_is_found(tmp_path, place):
    """Beside small ones, in its first block and its last. A file of zeros is a hole, which takes no room on the disk."""
    (tmp_path / "state" / "below").mkdir(parents=True)
    large, small = tmp_path / "state" / "below" / "large", tmp_path / "state" / "small"
    large.touch()
    os.truncate(large, 66 << 20)
    small.write_bytes(b"small")
    (tmp_path / "checkpoint.json").write_bytes(checkpoint_files.contents(tmp_path, {}, 1))
    files = json.loads((tmp_path / "checkpoint.json").read_bytes())["files"]
    assert files == {"state/below/large": [66 << 20, zlib.crc32(bytes(66 << 20))], "state/small": [5, zlib.crc32(b"small")]}
    assert checkpoint_files.damage_of(tmp_path) is None
    with open(large, "r+b") as file:
        file.seek(place)
        file.write(b"\x10")
    assert checkpoint_files.size_damage(tmp_path) is None
    assert checkpoint_files.damage_of(tmp_path) == "state/below/large was altered"


def test_what_was_found_whole_is_read_once_to_be_restored_and_again_the_next_time(tmp_path):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    assert checkpoints.latest() == 2
    stored = newest_file(tmp_path, 2).parent / "unread"  # nothing that orbax reads: only its checksum is wrong
    stored.write_bytes(b"one")
    record = checkpoint_files.contents(tmp_path / "step_0000000002", {"step": 2}, 2)
    (tmp_path / "step_0000000002" / "checkpoint.json").write_bytes(record)
    stored.write_bytes(b"two")
    assert checkpoints.restore(abstract(make_state(0)))[1] == {"step": 2} and said == []
    assert checkpoints.restore(abstract(make_state(0)))[1] == {"step": 1} and "unread was altered" in said[0]


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, say=lambda _: None)
    checkpoints.save(1, make_state(1), {})
    (tmp_path / "step_0000000005").mkdir()
    checkpoints.save(2, make_state(2), {})
    assert checkpoints.latest() == 2 and checkpoints.steps() == [2]


def test_a_run_that_went_back_past_damaged_ones_keeps_what_it_writes_then(tmp_path):
    """Their sizes are right, so that only reading them shows the damage."""
    said: list[str] = []
    before = Checkpoints(tmp_path, keep=2)
    before.outlasting = [2]
    for step in (2, 6, 7):
        before.save(step, make_state(step), {"step": step})
    for step in (6, 7):
        flip_a_bit(tmp_path, step)
    again = Checkpoints(tmp_path, keep=2, say=said.append)
    assert again.latest() == 2
    assert again.restore(abstract(make_state(0)))[1] == {"step": 2}
    again.outlasting = [2]
    assert again.steps() == [2, 6, 7] and len(said) == 2  # until there is a newer good one
    for step, left in ((3, [2, 3]), (4, [2, 3, 4]), (5, [2, 4, 5])):
        again.save(step, make_state(step), {"step": step})
        assert again.steps() == left
    assert len(said) == 3 and said[2].endswith("deleted, as it has saved step 3 since: 6, 7.")
    state, record = Checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert record == {"step": 5}
    assert_same(state, make_state(5))


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
