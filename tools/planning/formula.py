"""What a plan knows without a compiler: the arithmetic of a step, and roughly what it needs and sends on a given mesh.

The FLOPs are exact counts of the products that matter (a compiler's own count sees the body of a scan once). The bytes of a chip are those that
the dry run tells too (`epo_jax.memory_plan`); what is sent is rough. Both only choose which few meshes are worth compiling.
"""

from __future__ import annotations

import dataclasses
import math

from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from epo_jax import memory_plan
from epo_jax.mesh import AXES, parts
from epo_jax.model import lora as adapters
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare


def matmul_params(model: LlamaConfig) -> int:
    """Weights that a token is multiplied with: all but norms, and but the embedding table where the head is another."""
    d, f, h = model.hidden_size, model.intermediate_size, model.head_dim
    layer = 2 * d * model.num_heads * h + 2 * d * model.num_kv_heads * h + 3 * d * f
    return model.num_layers * layer + model.vocab_size * d


def learn_flops(model: LlamaConfig, rows: int, length: int) -> float:
    """Of one pass over `rows` sequences of `length` tokens: 6 N D, and 6 T² N_heads H for each row and layer (causal attention, half of the
    square). What remat computes again does not count, and every token counts as one that the head scores."""
    attention = 6 * length**2 * model.num_heads * model.head_dim * model.num_layers * rows
    return 6.0 * matmul_params(model) * rows * length + attention


def decode_flops(model: LlamaConfig, rows: int, cached: int) -> float:
    """Of one step of decoding, a token for each row, each with so many tokens cached."""
    return rows * (2.0 * matmul_params(model) + 4.0 * cached * model.num_heads * model.head_dim * model.num_layers)


@dataclasses.dataclass(frozen=True)
class Guess:
    """bytes: that a chip holds while it learns. sent: bytes that it sends in a pass, for each row that the pass learns from."""

    mesh: dict[str, int]
    bytes: float
    sent: float


def guess(config: ConfigDict, model: LlamaConfig, mesh: dict[str, int], *, platform: str) -> Guess:
    """For a mesh (its sizes) that divides the model; the rows of a pass are rounded up to what it divides."""
    rows = rows_for(config.learn.rows, mesh)
    config = config.copy_and_resolve_references()
    config.learn.rows, config.learn.length_buckets, config.learn.packing = rows, (config.learn.max_length,), False
    shape = AbstractMesh(tuple(mesh[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    one = AbstractMesh((1,) * len(AXES), AXES, axis_types=shape.axis_types)  # what plays does not matter here
    needed = memory_plan.plan(config, model, shape, own=one, platform=platform).learning
    itemsize = 2 if config.model.compute_dtype == "bfloat16" else 4
    lora = adapters.from_config(config.model.lora)
    learned = sum(math.prod(weight.shape) / math.prod(parts(weight.axes, mesh)) for weight in leaves(adapters.declare(model, lora)))
    data, fsdp, sequence, tensor = (mesh[axis] for axis in AXES)
    tokens, ways = rows / (data * fsdp * sequence) * config.learn.max_length, fsdp * sequence  # tokens on one chip
    inputs = tokens * model.hidden_size * itemsize * model.num_layers
    gathered = 0.0 if ways == 1 else (ways - 1) / ways * (4 * itemsize * model.num_params / tensor)  # 8.3 bytes a weight were seen on v5e-16
    keys = 2 * tokens * model.num_kv_heads * model.head_dim / tensor * model.num_layers  # of a stretch, with values: forward twice, then with gradients
    exchanged = (sequence - 1) * keys * (3 * itemsize + 4)
    summed = 0.0 if tensor == 1 else (tensor - 1) / tensor * 2 * 6 * inputs
    replicated = 0.0 if data == 1 else 2 * (data - 1) / data * 4 * learned
    return Guess(mesh, needed, (gathered + exchanged + summed + replicated) / (rows / data))


def meshes(model: LlamaConfig, chips: int) -> list[dict[str, int]]:
    """Every factorisation of the chips over fsdp and tensor that divides the model."""
    one = dict.fromkeys(AXES, 1)
    found = [one | {"fsdp": chips // tensor, "tensor": tensor} for tensor in range(1, chips + 1) if chips % tensor == 0]
    return [mesh for mesh in found if all(divides(weight, mesh) for weight in leaves(declare(model)))]


def divides(weight, mesh: dict[str, int]) -> bool:
    return all(size % ways == 0 for size, ways in zip(weight.shape, parts(weight.axes, mesh), strict=True))


def candidates(config: ConfigDict, model: LlamaConfig, chips: int, hbm: float, *, platform: str, most: int = 3) -> list[Guess]:
    """The meshes that are worth compiling, best first: those that seem to fit (with a quarter to spare for a rough guess), by bytes sent; where
    none seems to, the smallest."""
    guesses = [guess(config, model, mesh, platform=platform) for mesh in meshes(model, chips)]
    fitting = sorted((one for one in guesses if one.bytes < 1.25 * hbm), key=lambda one: (one.bytes > hbm, one.sent))
    return (fitting or sorted(guesses, key=lambda one: one.bytes))[:most]


def rows_for(rows: int, mesh: dict[str, int]) -> int:
    """The rows of a pass: as asked for, rounded up to what the mesh divides."""
    ways = mesh["data"] * mesh["fsdp"]
    return math.ceil(rows / ways) * ways


def leaves(declared) -> list:
    return [leaf for value in declared.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]
