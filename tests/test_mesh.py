"""Meshes of simulated devices: the rules, what they refuse, and that a split model computes what a whole one does."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from epo_jax.errors import UserError
from epo_jax.mesh import RULES, batch_sharding, check_divides, constrain, describe_weights, gather, make_mesh, param_shardings, spec
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, eos_token_ids=(2,)
)  # fmt: skip

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ({}, None),
        ({"data": -1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 2)),
        ({"data": -1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_sizes(asked, got) -> None:
    if got is None:
        with pytest.raises(UserError, match="needs 1 devices and there are 8"):
            make_mesh(asked)
        return
    mesh = make_mesh(asked)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == got
    assert len(set(mesh.devices.flat)) == 8


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"data": 3}, "needs 3 devices and there are 8"),
        ({"data": 3, "fsdp": -1}, "8 devices cannot be divided"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "sizes are positive"),
        ({"model": 2}, "no axis 'model'"),
    ],
)
def test_impossible_sizes(asked, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        make_mesh(asked)


def test_a_part_of_the_devices() -> None:
    mesh = make_mesh({"fsdp": 2, "tensor": -1}, jax.devices()[:4])
    assert mesh.devices.shape == (1, 2, 2)


def test_no_weight_uses_a_mesh_axis_twice() -> None:
    for weight in jax.tree.leaves(declare(CONFIG)):
        assert len(weight.shape) == len(weight.axes)
        spec(*weight.axes)  # raises for two logical axes on one mesh axis
    with pytest.raises(ValueError, match="collide"):
        spec("model", "table_model")


def test_every_large_weight_is_split_over_fsdp_and_tensor() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = jax.device_put(llama.init_params(CONFIG, jax.random.key(0)), param_shardings(CONFIG, mesh))
    for path, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        part = math.prod(array.addressable_shards[0].data.shape)
        name = jax.tree_util.keystr(path)
        assert part == (array.size if "norm" in name else array.size // 4), name


def test_rows_of_a_batch_go_to_data_and_fsdp() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = jax.device_put(jnp.zeros((8, 5)), batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 5)}


def test_constrain_without_a_mesh_is_nothing() -> None:
    x = jnp.ones(3)
    assert constrain(x, None, "batch") is x
    assert set(RULES) >= {"batch", "length", "activation"}


@pytest.mark.parametrize(
    ("change", "shape", "names"),
    [
        ({"num_kv_heads": 1}, {"tensor": 2, "data": -1}, ["wk", "1 kv_heads", "tensor"]),
        ({"intermediate_size": 50}, {"tensor": 4, "data": -1, "fsdp": 1}, ["tensor"]),
        ({"hidden_size": 36}, {"fsdp": 8}, ["embed", "36", "fsdp"]),
        ({"vocab_size": 97}, {"tensor": 2, "data": -1}, ["head", "97 vocab", "tensor"]),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(change, shape, names) -> None:
    with pytest.raises(UserError) as caught:
        check_divides(dataclasses.replace(CONFIG, **change), make_mesh(shape))
    for name in names:
        assert name in str(caught.value)


def test_a_mesh_that_divides_the_model() -> None:
    for shape in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": -1}, {"fsdp": 8}):
        check_divides(CONFIG, make_mesh(shape))


@pytest.mark.parametrize("tied", [False, True])
def test_split_over_eight_devices_the_model_computes_the_same(tied) -> None:
    """Loss and gradient on 2 x 2 x 2 devices against one device."""
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = llama.init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 24), 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    segments = (positions < jnp.array([[24], [20], [7], [24]])).astype(jnp.int32)

    def loss(params, tokens, segments, mesh):
        hidden = llama.hidden_states(params, config, tokens, positions, segments, remat="full", mesh=mesh)
        logprobs = jax.nn.log_softmax(llama.logits(params, config, hidden[:, :-1], mesh=mesh))
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(chosen * segments[:, 1:]) / 20

    run = jax.jit(jax.value_and_grad(loss), static_argnums=3)
    want_loss, want = run(params, tokens, segments, None)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    split = jax.device_put(params, param_shardings(config, mesh))
    rows = batch_sharding(mesh)
    got_loss, got = run(split, jax.device_put(tokens, rows), jax.device_put(segments, rows), mesh)
    assert abs(float(got_loss) - float(want_loss)) < 1e-5
    for one, eight in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(eight)).max() < 1e-5 * max(1.0, np.abs(one).max())


def test_a_split_weight_lies_as_its_spec_says() -> None:
    shardings = param_shardings(CONFIG, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    assert shardings["layers"]["wq"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings["layers"]["w_down"].spec == PartitionSpec(None, "tensor", "fsdp")


def test_the_gradient_of_a_gathered_weight_lies_where_the_weight_does() -> None:
    """With `constrain` it would be whole on every device of the axis; the numbers are the same."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    stored, used = ("model", "vocab"), ("activation", "vocab")
    weight, x = jax.random.normal(jax.random.key(0), (32, 96)), jax.random.normal(jax.random.key(1), (8, 32))
    split = jax.device_put(weight, jax.sharding.NamedSharding(mesh, spec(*stored)))
    rows = jax.device_put(x, batch_sharding(mesh))

    def loss(weight, x, placed):
        return jnp.sum(jnp.sin(x @ placed(weight)))

    want = jax.grad(loss)(weight, x, lambda weight: weight)
    shapes = {}
    for name, placed in (("gather", lambda w: gather(w, mesh, stored, used)), ("constrain", lambda w: constrain(w, mesh, *used))):
        got = jax.jit(jax.grad(lambda w, x: loss(w, x, placed)))(split, rows)  # noqa: B023
        assert np.abs(np.asarray(got) - np.asarray(want)).max() < 1e-5
        shapes[name] = {shard.data.shape for shard in got.addressable_shards}
    assert shapes == {"gather": {(8, 48)}, "constrain": {(32, 48)}}


def test_without_a_mesh_nothing_is_gathered() -> None:
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(gather(x, None, ("model",), ("activation",)) ** 2))(jnp.arange(3.0))
    assert value == 5.0 and np.array_equal(gradient, [0.0, 2.0, 4.0])


def test_the_bytes_that_are_told_are_those_that_lie_on_a_device() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    large = declare(dataclasses.replace(CONFIG, hidden_size=3200, intermediate_size=4800))
    lines = describe_weights(large, mesh)
    told = sum(float(line.split("; ")[1].split(" MB")[0]) for line in lines)
    shapes = jax.tree.map(lambda weight, sharding: math.prod(sharding.shard_shape(weight.shape)) * 4, large, param_shardings(CONFIG, mesh))
    assert told == pytest.approx(sum(jax.tree.leaves(shapes)) / 1e6, abs=0.05 * len(lines))
    assert [line for line in lines if "norm" in line] == ["weights final_norm, attn_norm, mlp_norm: whole on every device; 0.1 MB a device"]
    assert any("w_gate" in line and "ff over tensor 2, model over fsdp 2" in line for line in lines)


class _Chip:
    """What a mesh is made from where a TPU v6e would be."""

    platform, device_kind, core_on_chip, process_index, slice_index = "tpu", "TPU v6 lite", 0, 0, 0

    def __init__(self, number: int, x: int, y: int) -> None:
        self.id, self.coords = number, (x, y, 0)


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_neighbours_in_a_tpu_stay_neighbours_where_an_axis_of_the_machine_is_split(tensor):
    """On 4x4 chips every device of the tensor axis is one step from the next, though 2 and 8 are no product of the machine's sides."""
    chips = [_Chip(4 * y + x, x, y) for y in range(4) for x in range(4)]
    mesh = make_mesh({"fsdp": -1, "tensor": tensor}, chips)
    assert mesh.size == 16 and mesh.shape["tensor"] == tensor
    for group in mesh.devices.reshape(-1, tensor):
        steps = [sum(min(abs(a - b), 4 - abs(a - b)) for a, b in zip(one.coords, other.coords)) for one, other in zip(group, group[1:])]
        assert set(steps) <= {1, 2} and steps[0] == 1
