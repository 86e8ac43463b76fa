"""A disk that refuses: the last good checkpoint stays, and one sentence says why."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from epo_jax import checkpoint
from epo_jax.checkpoint import Checkpoints
from epo_jax.checkpoint_files import why_not_written
from epo_jax.errors import UserError
from tests.checkpoint.states import abstract, assert_same, make_state

REPOSITORY = pathlib.Path(checkpoint.__file__).resolve().parent.parent


@pytest.mark.parametrize("wrapped", ["plain", "cause", "text", "group"])
def test_a_full_disk_is_told_and_the_last_good_one_stays(tmp_path, monkeypatch, wrapped):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"step": 1})
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(path, state):
        (path / "half").mkdir(parents=True)
        if wrapped == "plain":
            raise full
        if wrapped == "cause":
            raise RuntimeError("saving failed") from full
        if wrapped == "group":
            raise ExceptionGroup("tasks", [ValueError("x"), full])
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: write failed: No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save_async", refuse)
    with pytest.raises(UserError, match="the disk is full, make room; the last good one is step 1") as told:
        checkpoints.save(2, make_state(2), {"step": 2})
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step_0000000001"]
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(1))


def test_a_full_disk_while_replacing_brings_the_old_one_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"step": 1})
    rename = os.rename

    def refuse(source, target):
        if ".partial" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="disk is full"):
        checkpoints.save(1, make_state(2), {"step": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step_0000000001"] and checkpoints.read_record() == {"step": 1}


def test_a_limit_on_file_size_is_told_by_the_real_writer(tmp_path):
    """No disk is filled here, but the system refuses the write just so: through orbax and tensorstore, not through a stand-in."""
    program = (
        "import resource, sys\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from epo_jax import checkpoint; from epo_jax.errors import UserError; from tests.checkpoint.states import make_state\n"
        "c = checkpoint.Checkpoints(sys.argv[1]); c.save(1, make_state(1), {})\n"
        "import jax, jax.numpy as jnp\n"
        "big = jax.random.normal(jax.random.key(0), (1 << 20,))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: c.save(2, {'big': big}, {})\n"
        "except UserError as error: print(error); sys.exit(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the disk is full" in done.stdout and "Traceback" not in done.stderr, done.stderr[:2000]
    assert_same(Checkpoints(tmp_path).restore(abstract(make_state(0)))[0], make_state(1))
    assert os.listdir(tmp_path) == ["step_0000000001"]


FULL = """
import os, sys
import jax, numpy as np
from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from tests.checkpoint.states import abstract, assert_same, make_state
folder = sys.argv[1]
c = Checkpoints(folder)
c.save(1, make_state(1), {})
c.begin(2, {"big": jax.random.normal(jax.random.key(0), (1 << 20,))}, {})  # 4 MB of noise on a disk of 2 MB, while the run goes on
try: c.settle(); sys.exit("it fitted")
except UserError as error: print(error)
assert os.listdir(folder) == ["step_0000000001"], os.listdir(folder)
assert_same(c.restore(abstract(make_state(0)))[0], make_state(1))
c.save(2, make_state(2), {})  # the run goes on when there is room
assert_same(Checkpoints(folder).restore(abstract(make_state(0)))[0], make_state(2))
print("and went on")
"""


def test_what_takes_too_long_is_no_fault_of_permissions():
    """A TimeoutError is an OSError without words; orbax raises it where a process of the run does not come to write."""
    assert "took too long" in why_not_written(TimeoutError()) and why_not_written(ValueError("a bug")) is None


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 2 MB in memory, mounted in a name space of its own."""
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL]
    if subprocess.run([*command[:6], 'mount -t tmpfs tmpfs "$1"', "sh", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a file system in a name space (unshare --user --mount)")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the disk is full, make room; the last good one is step 1" in done.stdout and "and went on" in done.stdout
    assert "Traceback" not in done.stderr, done.stderr[:2000]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save a checkpoint"):
        Checkpoints(tmp_path / "file" / "below").save(1, make_state(1), {})


def test_a_record_that_is_not_json_is_a_programming_error_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Checkpoints(tmp_path / "a").save(1, make_state(1), {"x": object()})
    assert not (tmp_path / "a").exists()
