"""Checkpoints come back bit for bit, survive kills and damage at any moment, and say in one sentence what is wrong."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax import checkpoint, checkpoint_files
from epo_jax.checkpoint import Checkpoints, config_differences, restore_params
from epo_jax.errors import UserError

REPOSITORY = pathlib.Path(checkpoint.__file__).resolve().parent.parent
MODEL = {"num_layers": 2, "rope": {"theta": 10000.0}}


class State(NamedTuple):
    params: dict[str, Any]
    opt_state: Any
    step: Any
    key: Any
    seed: int
    host: Any


def make_state(value: float, *, width: int = 8, dtype: Any = jnp.float32) -> State:
    params = {
        "embed": jnp.full((16, width), value, dtype),
        "layers": {"wq": jax.random.normal(jax.random.key(int(value)), (2, width, 4)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(value, x.dtype), optimizer.init(params))
    return State(params, opt_state, jnp.int32(value), jax.random.split(jax.random.key(int(value)), 3), 2**40 + int(value), np.array([2**60 + 1, int(value)]))


def abstract(state: State) -> State:
    on_device = jax.eval_shape(lambda: state._replace(seed=None, host=None))
    return on_device._replace(seed=0, host=np.zeros_like(state.host))


def assert_same(state: State, other: State) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
        assert getattr(left, "dtype", type(left)) == getattr(right, "dtype", type(right))
        if jnp.issubdtype(getattr(left, "dtype", np.int32), jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def newest_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The largest file of a step: the arrays."""
    files = [path for path in (folder / f"step_{step:010d}" / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a" / "b")
    assert checkpoints.latest() is None
    record = {"round": 3, "phase": "learn", "model": MODEL, "nested": {"x": [1, None, 0.1]}}
    checkpoints.save(7, make_state(7), record)
    state, back = Checkpoints(tmp_path / "a" / "b").restore(abstract(make_state(0)), model=MODEL)
    assert back == record and checkpoints.latest() == 7 and checkpoints.read_record() == record
    assert_same(state, make_state(7))
    assert isinstance(state.seed, int) and isinstance(state.host, np.ndarray)
    np.testing.assert_array_equal(jax.random.uniform(state.key[1], (4,)), jax.random.uniform(make_state(7).key[1], (4,)))


def test_another_kind_of_random_key(tmp_path):
    key = jax.random.key(3, impl="rbg")
    Checkpoints(tmp_path).save(0, {"key": key}, {})
    state, _ = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: {"key": key}))
    assert state["key"].dtype == key.dtype
    np.testing.assert_array_equal(jax.random.uniform(state["key"]), jax.random.uniform(key))


def test_keeps_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5, 9):
        checkpoints.save(step, make_state(step), {"step": step})
    assert checkpoints.steps() == [5, 9]
    assert sorted(os.listdir(tmp_path)) == ["step_0000000005", "step_0000000009"]
    state, record = checkpoints.restore(abstract(make_state(0)), step=5)
    assert record == {"step": 5}
    assert_same(state, make_state(5))


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"try": 1})
    checkpoints.save(1, make_state(2), {"try": 2})
    state, record = checkpoints.restore(abstract(make_state(0)))
    assert record == {"try": 2} and os.listdir(tmp_path) == ["step_0000000001"]
    assert_same(state, make_state(2))


def test_keeps_for_good_what_says_so_and_what_outlasts(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4, 5):
        checkpoints.outlasting = [2] if step < 5 else [4]  # what was the best is so no longer
        checkpoints.save(step, make_state(step), {"keep": step == 1})
    assert checkpoints.steps() == [1, 4, 5]


# --- written while the run goes on --------------------------------------------------------------------------------------------------------------


def test_the_state_may_change_while_it_is_written(tmp_path, monkeypatch):
    """Nothing is written before the state was changed in place and its arrays were given away."""
    checkpoints = Checkpoints(tmp_path)
    changed, save_async = threading.Event(), checkpoint.ocp.save_async

    class Late:
        def __init__(self, arrays):
            self.result = lambda: (changed.wait(20), arrays.result())

    monkeypatch.setattr(checkpoint.ocp, "save_async", lambda path, state: Late(save_async(path, state)))
    state = make_state(1)
    expected = jax.tree.map(lambda leaf: leaf if isinstance(leaf, int) else leaf.copy(), state)
    checkpoints.begin(1, state, {"step": 1})
    assert checkpoints.steps() == []  # and what is not whole is not there
    state.host[:] = 0
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)((state.params, state.opt_state)))
    changed.set()
    checkpoints.settle()
    assert_same(Checkpoints(tmp_path).restore(abstract(make_state(0)))[0], expected)


def test_what_failed_in_the_background_is_told_by_whoever_waits_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_and_sync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        checkpoints.begin(2, make_state(2), {})
        with pytest.raises(UserError, match="the disk is full, make room; the last good one is step 1"):
            checkpoints.begin(3, make_state(3), {})
    assert checkpoints.steps() == [1]
    checkpoints.save(3, make_state(3), {})
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(3))


def test_works_inside_a_running_event_loop(tmp_path):
    async def save_and_restore():
        Checkpoints(tmp_path).save(1, make_state(1), {})
        return Checkpoints(tmp_path).restore(abstract(make_state(0)))[0]

    assert_same(asyncio.run(save_and_restore()), make_state(1))


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
sys.path.insert(0, sys.argv[3])
from epo_jax import checkpoint
from test_checkpoint import make_state
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
        [sys.executable, "-c", KILLED, str(folder), moment, str(pathlib.Path(__file__).parent)], env=environment, stderr=subprocess.DEVNULL
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
        command = [sys.executable, "-c", program, str(folder), "none", str(pathlib.Path(__file__).parent)]
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


# --- a disk that refuses ------------------------------------------------------------------------------------------------------------------------


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
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from epo_jax import checkpoint; from epo_jax.errors import UserError; from test_checkpoint import make_state\n"
        "c = checkpoint.Checkpoints(sys.argv[1]); c.save(1, make_state(1), {})\n"
        "import jax, jax.numpy as jnp\n"
        "big = jax.random.normal(jax.random.key(0), (1 << 20,))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: c.save(2, {'big': big}, {})\n"
        "except UserError as error: print(error); sys.exit(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, str(tmp_path), str(pathlib.Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the disk is full" in done.stdout and "Traceback" not in done.stderr, done.stderr[:2000]
    assert_same(Checkpoints(tmp_path).restore(abstract(make_state(0)))[0], make_state(1))
    assert os.listdir(tmp_path) == ["step_0000000001"]


FULL = """
import os, sys; sys.path.insert(0, sys.argv[2])
import jax, numpy as np
from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from test_checkpoint import abstract, assert_same, make_state
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


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 2 MB in memory, mounted in a name space of its own."""
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL, str(pathlib.Path(__file__).parent)]
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


# --- another configuration, another mesh ----------------------------------------------------------------------------------------------------------


def test_another_model_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"model": MODEL})
    with pytest.raises(UserError, match=r"num_layers is 2 there and 4 here; rope.theta is 10000.0 there and 500000.0 here"):
        checkpoints.restore(abstract(make_state(0)), model={"num_layers": 4, "rope": {"theta": 500000.0}})
    with pytest.raises(UserError, match=r"params.embed is float32\[16, 8\] there and float32\[16, 12\] here"):
        checkpoints.restore(abstract(make_state(0, width=12)))
    with pytest.raises(UserError, match=r"bfloat16\[16, 8\] here"):
        checkpoints.restore(abstract(make_state(0, dtype=jnp.bfloat16)))
    with pytest.raises(UserError, match="opt_state.* is not wanted here"):
        checkpoints.restore(abstract(make_state(0))._replace(opt_state=()))
    assert checkpoints.latest() == 1


def test_config_differences():
    assert config_differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}) == []
    assert config_differences({"a": {"x": 1}, "gone": 2}, {"a": {"x": 2}, "new": 3}) == [
        "a.x is 1 there and 2 here",
        "gone is 2 there and absent here",
        "new is absent there and 3 here",
    ]


SHARDED = """
import sys; sys.path.insert(0, sys.argv[2])
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from epo_jax.checkpoint import Checkpoints, restore_params
from test_checkpoint import State, abstract, assert_same, make_state
assert jax.device_count() == 8
state = make_state(4)
def shardings(shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    def of(leaf):
        spec = P("data", "fsdp") if getattr(leaf, "ndim", 0) == 2 and leaf.shape[0] == 16 else P()
        return NamedSharding(mesh, spec)
    return of
def place(tree, of, put):
    return jax.tree.map(lambda x: put(x, of(x)) if isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) else x, tree)
Checkpoints(sys.argv[1]).save(1, place(state, shardings((2, 4)), jax.device_put), {"model": {}})
for shape in ((2, 4), (4, 2), (8, 1)):
    of = shardings(shape)
    wanted = place(abstract(state), of, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    back, _ = Checkpoints(sys.argv[1]).restore(wanted)
    assert_same(back, state)
    assert back.params["embed"].sharding == of(state.params["embed"])
    assert len(back.params["embed"].addressable_shards) == 8 and back.params["embed"].addressable_shards[0].data.shape == (16 // shape[0], 8 // shape[1])
_, params, _ = restore_params(sys.argv[1], shardings=lambda model: jax.tree.map(of, state.params))
assert params["embed"].sharding == of(state.params["embed"])
print("restored on every mesh")
"""


def test_restores_onto_another_mesh_and_onto_one_device(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path), str(pathlib.Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "restored on every mesh" in done.stdout, done.stderr[-3000:]
    state, _ = Checkpoints(tmp_path).restore(abstract(make_state(0)))  # here: whatever devices this process has
    assert_same(state, make_state(4))


MEMBER = """
import sys; sys.path.insert(0, sys.argv[2])
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
folder, _, address, number, action = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from epo_jax.checkpoint import Checkpoints
assert jax.process_count() == 2 and jax.device_count() == 2
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
whole = {"embed": np.arange(64, dtype=np.float32).reshape(16, 4), "count": np.int32(7)}
shardings = {"embed": NamedSharding(mesh, P("fsdp")), "count": NamedSharding(mesh, P())}
if action == "save":
    state = {name: jax.make_array_from_callback(np.shape(x), shardings[name], lambda index, x=x: np.asarray(x)[index]) for name, x in whole.items()}
    checkpoints = Checkpoints(folder, keep=1)
    for step in (1, 2, 3):
        checkpoints.begin(step, state, {"step": step})
    checkpoints.settle()
else:
    wanted = {name: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=shardings[name]) for name, x in whole.items()}
    state, record = Checkpoints(folder).restore(wanted)
    assert record == {"step": 4}
for name, array in state.items():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(whole[name])[shard.index])
assert not state["embed"].is_fully_addressable
print("equal")
"""


def two_processes(folder: pathlib.Path, action: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEMBER, str(folder), str(pathlib.Path(__file__).parent), address]
    members = [
        subprocess.Popen([*command, number, action], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in "01"
    ]
    for member in members:
        out, trouble = member.communicate(timeout=120)
        assert member.returncode == 0 and "equal" in out, trouble[-3000:]


def test_restores_onto_another_number_of_processes(tmp_path):
    """Two save together, while they go on; one restores and saves; two restore."""
    two_processes(tmp_path, "save")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3]
    state, record = checkpoints.restore({"embed": jnp.zeros((16, 4)), "count": jnp.int32(0)})
    assert record == {"step": 3} and int(state["count"]) == 7
    np.testing.assert_array_equal(state["embed"], np.arange(64, dtype=np.float32).reshape(16, 4))
    checkpoints.save(4, state, {"step": 4})
    two_processes(tmp_path, "restore")


def test_parameters_alone(tmp_path):
    Checkpoints(tmp_path).save(3, make_state(3), {"model": MODEL, "round": 2})
    model, params, record = restore_params(tmp_path)
    assert model == MODEL and record["round"] == 2
    expected = make_state(3).params
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    with pytest.raises(UserError, match="no 'weights'"):
        restore_params(tmp_path, name="weights")
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        restore_params(tmp_path, 4)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UserError, match="not those of this model"):
        restore_params(tmp_path, shardings={"embed": one})


def test_the_record_is_readable_by_people(tmp_path):
    path = Checkpoints(tmp_path).save(3, make_state(3), {"round": 2})
    assert json.loads((path / "checkpoint.json").read_text())["record"] == {"round": 2}
