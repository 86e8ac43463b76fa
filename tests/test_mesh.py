"""Meshes of simulated devices: the rules, what they refuse, and that a split model computes what a whole one does."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from epo_jax.errors import UserError
from epo_jax.mesh import (
    AXES, RULES, batch_sharding, check_divides, choose_sizes, constrain, describe_weights, gather, make_mesh, param_shardings, sizes_of, spec,
)  # fmt: skip
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
        ({"data": -1}, (8, 1, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 1, 2)),
        ({"data": -1, "tensor": 8}, (1, 1, 1, 8)),
        ({"sequence": -1, "tensor": 2}, (1, 1, 4, 2)),
    ],
)
def test_sizes(asked, got) -> None:
    if got is None:
        with pytest.raises(UserError, match="needs 1 devices and there are 8"):
            make_mesh(asked)
        return
    mesh = make_mesh(asked)
    assert mesh.axis_names == ("data", "fsdp", "sequence", "tensor") and mesh.devices.shape == got
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
    assert mesh.devices.shape == (1, 2, 1, 2)


def test_no_weight_uses_a_mesh_axis_twice() -> None:
    for weight in jax.tree.leaves(declare(CONFIG)):
        assert len(weight.shape) == len(weight.axes)
        spec(*weight.axes)  # raises for two logical axes on one mesh axis
    with pytest.raises(ValueError, match="collide"):
        spec("model", "table_model")


@pytest.mark.parametrize("split", ["fsdp", "sequence"])
def test_every_large_weight_is_split(split) -> None:
    """Over tensor, and over fsdp and sequence alike."""
    mesh = make_mesh({"data": 2, split: 2, "tensor": 2})
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
        ({"num_kv_heads": 1}, {"tensor": 2, "data": -1}, ["wk", "1 kv_heads", "tensor 2"]),
        ({"num_heads": 9, "num_kv_heads": 3}, {"tensor": 4, "data": -1}, ["3 kv_heads, not a multiple of 4", "divides 3"]),
        ({"intermediate_size": 50}, {"tensor": 4, "data": -1, "fsdp": 1}, ["tensor"]),
        ({"hidden_size": 36}, {"fsdp": 8}, ["embed", "36", "fsdp"]),
        ({"hidden_size": 36}, {"fsdp": 4, "sequence": 2}, ["embed", "36", "fsdp 4 × sequence 2"]),
        ({"vocab_size": 97}, {"tensor": 2, "data": -1}, ["head", "97 vocab", "tensor"]),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(change, shape, names) -> None:
    with pytest.raises(UserError) as caught:
        check_divides(dataclasses.replace(CONFIG, **change), make_mesh(shape))
    for name in names:
        assert name in str(caught.value)
    assert str(caught.value).count(".") == 1


def test_a_mesh_that_divides_the_model() -> None:
    for shape in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": -1}, {"fsdp": 8}):
        check_divides(CONFIG, make_mesh(shape))


def test_no_weight_is_whole_where_it_is_not_told() -> None:
    """Sizes and meshes by chance: either one sentence says what does not fit, or every weight but a norm's is cut into as many parts as there are
    devices that its axes name, all equal, and the start-up lines tell the bytes of a part."""
    random, refused = np.random.default_rng(0), 0
    sizes = (1, 2, 3, 4, 6, 8, 9, 32, 33, 48, 96, 97)
    for _ in range(400):
        v, d, f, n, h = (int(random.choice(sizes)) for _ in range(5))
        k = int(random.choice([size for size in range(1, n + 1) if n % size == 0]))
        config = dataclasses.replace(
            CONFIG, vocab_size=v, hidden_size=d, intermediate_size=f, num_heads=n, num_kv_heads=k, head_dim=2 * h, tie_embeddings=bool(random.integers(2))
        )  # fmt: skip
        mesh = make_mesh(dict(zip(AXES, random.permutation([1, 2, 2, 2]).tolist(), strict=True)) if random.integers(2) else {str(random.choice(AXES)): 8})
        declared = declare(config)
        try:
            check_divides(config, mesh)
        except UserError as error:
            refused += 1
            assert str(error).count(".") == 1
            with pytest.raises(ValueError, match="evenly divide"):  # what JAX itself would say
                jax.tree.map(lambda weight, sharding: sharding.shard_shape(weight.shape), declared, param_shardings(config, mesh))
            continue
        split_over = mesh.size // mesh.shape["data"]
        bytes_of_parts = 0
        for path, weight in jax.tree_util.tree_flatten_with_path(declared)[0]:
            part = math.prod(NamedSharding(mesh, spec(*weight.axes)).shard_shape(weight.shape))
            bytes_of_parts += 4 * part
            assert part * (1 if "norm" in str(path[-1].key) else split_over) == math.prod(weight.shape)
        told = [float(line.split("; ")[1].split(" MB")[0]) for line in describe_weights(declared, mesh, itemsize=4_000_000)]
        assert sum(told) == pytest.approx(bytes_of_parts, abs=0.05 * len(told))
    assert 100 < refused < 350


@pytest.mark.parametrize(
    ("count", "hosts", "model", "rows", "length", "chosen"),
    [
        (1, 1, 4096, 4, 4096, (1, 1, 1, 1)),
        (2, 1, 4096, 4, 4096, (1, 2, 1, 1)),
        (4, 1, 4096, 4, 4096, (1, 4, 1, 1)),
        (8, 1, 4096, 4, 4096, (1, 4, 2, 1)),  # more devices than rows: two have a row
        (8, 1, 4096, 8, 4096, (1, 8, 1, 1)),
        (8, 1, 4096, 1, 4096, (1, 1, 8, 1)),
        (8, 1, 4096, 1, 2048, (1, 8, 1, 1)),  # stretches of 256 tokens are not worth it: `check_rows` asks for more rows
        (6, 1, 4096, 6, 4096, (3, 2, 1, 1)),  # 4096 has no third
        (6, 1, 576, 6, 4096, (1, 6, 1, 1)),  # SmolLM2's 576 has
        (6, 1, 576, 2, 4096, (1, 2, 3, 1)),
        (16, 2, 4096, 16, 4096, (1, 16, 1, 1)),
        (16, 2, 4096, 4, 4096, (1, 4, 4, 1)),
        (16, 8, 4096, 2, 8192, (1, 2, 8, 1)),  # a row over four machines, as nothing else has two rows
        (256, 32, 4096, 256, 4096, (1, 256, 1, 1)),
        (256, 32, 4096, 64, 4096, (1, 64, 4, 1)),
        (256, 32, 576, 256, 4096, (4, 64, 1, 1)),
        (256, 32, 4096, 4, 1024, (1, 256, 1, 1)),
        (7, 1, 4096, 7, 4096, (7, 1, 1, 1)),
    ],
)
def test_sizes_that_are_chosen(count, hosts, model, rows, length, chosen) -> None:
    sizes = choose_sizes({}, count, width=model, rows=[rows, 2 * rows], slots=1024 * 3, length=length, hosts=hosts)
    assert tuple(sizes.values()) == chosen and math.prod(chosen) == count


def test_what_is_chosen_leaves_every_machine_a_block_of_its_own() -> None:
    """Machines of every size, 6 devices too: the owners of the devices at the places that a machine has along each axis are that machine alone."""
    for hosts, devices, width in itertools.product(range(1, 9), range(1, 9), (64, 576, 4096)):
        sizes = choose_sizes({}, hosts * devices, width=width, rows=[hosts * devices], slots=1024 * 3, length=4096, hosts=hosts)
        owners = np.repeat(np.arange(hosts), devices).reshape(tuple(sizes.values()))
        for host in range(hosts):
            block = np.ix_(*(np.unique(along) for along in np.nonzero(owners == host)))
            assert (owners[block] == host).all(), (hosts, devices, width, sizes)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"tensor": 2}, (1, 4, 1, 2)),
        ({"sequence": 2, "fsdp": 0}, (1, 4, 2, 1)),
        ({"fsdp": -1}, (1, 8, 1, 1)),
        ({"data": -1, "fsdp": 1}, (8, 1, 1, 1)),
        ({"data": 2}, (2, 2, 2, 1)),
        ({"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}, (1, 2, 2, 2)),
    ],
)
def test_what_is_asked_for_is_kept(asked, chosen) -> None:
    assert sizes_of(choose_sizes(asked, 8, width=64, rows=[4], slots=32, length=4096), 8) == chosen


@pytest.mark.parametrize(("asked", "sentence"), [({"tensor": 3}, "needs 3 devices"), ({"fsdp": 16}, "needs 16"), ({"rows": 2}, "no axis 'rows'")])
def test_what_cannot_be_is_refused(asked, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        sizes_of(choose_sizes(asked, 8, rows=[4]), 8)


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
    assert shardings["layers"]["wq"].spec == PartitionSpec(None, ("fsdp", "sequence"), "tensor", None)
    assert shardings["layers"]["w_down"].spec == PartitionSpec(None, "tensor", ("fsdp", "sequence"))


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


def test_the_lines_name_every_axis_that_splits() -> None:
    lines = describe_weights(declare(CONFIG), make_mesh({"fsdp": 2, "sequence": 2, "tensor": 2}))
    assert any("w_gate" in line and "ff over tensor 2, model over fsdp 2 × sequence 2" in line for line in lines)
    assert any("embed" in line and "table_model over fsdp 2 × sequence 2 × tensor 2" in line for line in lines)


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
