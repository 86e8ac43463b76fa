"""From the weights that learning keeps to those that playing reads, on a mesh: no device ever holds a whole one."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import pytest

from epo_jax.generate import device
from epo_jax.learn.learner import plain_params
from epo_jax.mesh import make_mesh, shardings_of
from epo_jax.model import lora, weights
from epo_jax.model.config import LlamaConfig
from epo_jax.model.lora import Lora

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")

CONFIG = LlamaConfig(vocab_size=640, hidden_size=64, intermediate_size=192, num_layers=4, num_heads=8, num_kv_heads=8, head_dim=16, tie_embeddings=False)
ADAPTERS = Lora(4)


def shapes(declared, mesh, dtype=jnp.float32):
    return jax.tree.map(
        lambda weight, sharding: jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding), declared, shardings_of(declared, mesh)
    )


def programs(mesh):
    """What runs between learning and playing: cast, adapters merged in, cast again or made 8 bits, and taken apart into layers."""
    whole, adapters = shapes(weights.declare(CONFIG), mesh), shapes(lora.declare(CONFIG, ADAPTERS), mesh)
    narrow = shapes(weights.declare(CONFIG), mesh, jnp.bfloat16)
    yield "cast", plain_params(CONFIG, None, jnp.bfloat16, mesh).lower(whole, None)
    yield "merge", plain_params(CONFIG, ADAPTERS, jnp.bfloat16, mesh).lower(adapters, whole)
    yield "bfloat16", device._prepare.lower(whole, "bfloat16")
    yield "int8", device._prepare.lower(narrow, "int8")
    yield "layers", device._for_decoding.lower(narrow, "compute", one_device=False)


@pytest.mark.parametrize("shape", [{"fsdp": 2, "sequence": 2, "tensor": 2}, {"sequence": 8}], ids=["2x2x2", "8"])
def test_no_device_gathers_a_whole_weight(shape) -> None:
    """Of the compiled programs: what a device holds, and sends, is its parts of the model and no more."""
    mesh = make_mesh(shape)
    numbers = sum(math.prod(weight.shape) for weight in jax.tree.leaves(weights.declare(CONFIG)))
    smallest = min(math.prod(weight.shape[1:]) for name, weight in weights.declare(CONFIG)["layers"].items() if "norm" not in name)
    for name, lowered in programs(mesh):
        program = lowered.compile()
        memory, made = program.memory_analysis(), sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(lowered.out_info))
        assert memory.output_size_in_bytes < 1.3 * made / 8, name  # norms are whole, and so are the scales of 8 bits along some axes
        assert memory.temp_size_in_bytes < 1.1 * 4 * numbers / 8, name
        sent = [size for result in re.findall(r" = (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", program.as_text())
                for size in map(size_of, re.findall(r"\w\d+\[([\d,]*)\]", result))]  # fmt: skip
        assert all(size < smallest for size in sent), (name, sent)


def size_of(dimensions: str) -> int:
    """Of "8,16"; of a scalar's "" it is 1."""
    return math.prod(int(size) for size in dimensions.split(",") if size)


def test_the_measure_sees_a_gathered_weight() -> None:
    mesh = make_mesh({"fsdp": 2, "sequence": 2, "tensor": 2})
    whole = shapes(weights.declare(CONFIG), mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    memory = jax.jit(lambda params: params, out_shardings=everywhere).lower(whole).compile().memory_analysis()
    assert memory.output_size_in_bytes > 4 * sum(math.prod(weight.shape) for weight in jax.tree.leaves(whole)) * 0.99
