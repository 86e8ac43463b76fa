"""Checkpoints on another mesh, another number of processes, and of another configuration."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax import checkpoint
from epo_jax.checkpoint import Checkpoints, config_differences
from epo_jax.errors import UserError
from tests.checkpoint.states import MODEL, abstract, assert_same, make_state, newest_file

REPOSITORY = pathlib.Path(checkpoint.__file__).resolve().parent.parent


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
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from epo_jax.checkpoint import Checkpoints, restore_params
from tests.checkpoint.states import State, abstract, assert_same, make_state
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
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "restored on every mesh" in done.stdout, done.stderr[-3000:]
    state, _ = Checkpoints(tmp_path).restore(abstract(make_state(0)))  # here: whatever devices this process has
    assert_same(state, make_state(4))


MEMBER = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
folder, address, number, action = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.errors import UserError
assert jax.process_count() == 2 and jax.device_count() == 2
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
whole = {"embed": np.arange(1 << 16, dtype=np.float32).reshape(16, -1), "count": np.int32(7)}
shardings = {"embed": NamedSharding(mesh, P("fsdp")), "count": NamedSharding(mesh, P())}
wanted = {name: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=shardings[name]) for name, x in whole.items()}
if action == "save":
    state = {name: jax.make_array_from_callback(np.shape(x), shardings[name], lambda index, x=x: np.asarray(x)[index]) for name, x in whole.items()}
    checkpoints = Checkpoints(folder, keep=1)
    for step in (1, 2, 3):
        checkpoints.begin(step, state, {"step": step})
    checkpoints.settle()
elif action == "restore":
    state, record = Checkpoints(folder).restore(wanted)
    assert record == {"step": 4}
else:
    said = []
    checkpoints = Checkpoints(f"{folder}/of_{number}", say=said.append)  # as this host sees it
    assert checkpoints.latest() == 4
    state, record = checkpoints.restore(wanted)
    assert record == {"step": 1}, record
    for sentence, step in zip(said, (4, 3, 2), strict=True):
        print(sentence)
        assert sentence.startswith("Process 1 of 2: the checkpoint") and f"step_000000000{step} cannot be read (" in sentence, said
        assert sentence.endswith("): the one before it is tried."), said
    for attempt in (lambda: checkpoints.restore(wanted, step=2), lambda: restore_params(f"{folder}/of_{number}", 4, name="embed")):
        try:
            attempt()
            raise SystemExit("restored")
        except UserError as error:
            print(error)
    shared = Checkpoints(f"{folder}/shared")  # orbax still counts its doings alike at both, or this would wait for minutes
    shared.save(1, state, {"step": 1})
    state, _ = shared.restore(wanted)
for name, array in state.items():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(whole[name])[shard.index])
assert not state["embed"].is_fully_addressable
print("equal")
"""


def two_processes(folder: pathlib.Path, action: str) -> list[str]:
    """What each of them said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEMBER, str(folder), address]
    members = [
        subprocess.Popen([*command, number, action], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in "01"
    ]
    said = []
    try:
        for member in members:
            out, trouble = member.communicate(timeout=120)
            assert member.returncode == 0 and "equal" in out, trouble[-3000:]
            said.append(out)
    finally:
        for member in members:  # where one failed, the other may wait for it
            member.kill()
    return said


def test_restores_onto_another_number_of_processes(tmp_path):
    """Two save together, while they go on; one restores and saves; two restore."""
    two_processes(tmp_path, "save")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3]
    state, record = checkpoints.restore({"embed": jnp.zeros((16, 4096)), "count": jnp.int32(0)})
    assert record == {"step": 3} and int(state["count"]) == 7
    np.testing.assert_array_equal(state["embed"], np.arange(1 << 16, dtype=np.float32).reshape(16, -1))
    checkpoints.save(4, state, {"step": 4})
    two_processes(tmp_path, "restore")


def test_what_one_process_cannot_read_none_takes(tmp_path):
    """The second process sees no step 4 (its listing is old), a step 3 without its largest array and a step 2 that does not say what it holds; the
    first one sees all of them whole. Both come out with step 1, and save together again."""
    one, other = tmp_path / "of_0", tmp_path / "of_1"
    for step in (1, 2, 3, 4):  # the arrays of step 1 are those that the processes compare with
        embed = jnp.arange(1 << 16, dtype=jnp.float32).reshape(16, -1) * step
        Checkpoints(one, keep=9).save(step, {"embed": embed, "count": jnp.int32(7)}, {"step": step})
    shutil.copytree(one, other)
    shutil.rmtree(other / "step_0000000004")
    newest_file(other, 3).unlink()
    (other / "step_0000000002" / "state" / "state" / "_METADATA").write_text("torn")
    for said in two_processes(tmp_path, "restore what each sees"):
        assert "no usable checkpoint" in said and "process 1 of 2: the checkpoint" in said and "step_0000000004 cannot be read (" in said, said
