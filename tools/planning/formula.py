"""What a plan knows without a compiler: the arithmetic of a step, and roughly what it needs and sends on a given mesh.

The FLOPs are exact counts of the products that matter (a compiler's own count sees the body of a scan once). The bytes are rough, only to
choose which few meshes are worth compiling.
"""

from __future__ import annotations

import dataclasses
import math

from epo_jax.mesh import parts
from epo_jax.model import lora as adapters
from epo_jax.model.config import LlamaConfig
from epo_jax.model.lora import Lora
from epo_jax.model.weights import declare

STATE_BYTES = 16  # of a weight that learns: itself, two moments and its gradient, float32
HEAD_TOKENS = 2048  # that the output head works on at once (epo_jax.learn.losses.chunk_for)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one pass computes. rows: in the pass, over all devices. length: tokens in a row, all of them real."""

    model: LlamaConfig
    rows: int
    length: int
    lora: Lora | None = None
    remat: str = "full"
    compute_bytes: int = 2  # of one activation


def matmul_params(model: LlamaConfig) -> int:
    """Weights that a token is multiplied with: all but norms, and but the embedding table where the head is another."""
    d, f, h = model.hidden_size, model.intermediate_size, model.head_dim
    layer = 2 * d * model.num_heads * h + 2 * d * model.num_kv_heads * h + 3 * d * f
    return model.num_layers * layer + model.vocab_size * d


def learn_flops(work: Work) -> float:
    """Of one pass: 6 N D, and 6 T² N_heads H for each row and layer (causal attention, half of the square). What remat computes again
    does not count, and every token counts as one that the head scores."""
    model = work.model
    attention = 6 * work.length**2 * model.num_heads * model.head_dim * model.num_layers * work.rows
    return 6.0 * matmul_params(model) * work.rows * work.length + attention


def decode_flops(model: LlamaConfig, rows: int, cached: int) -> float:
    """Of one step of decoding, a token for each row, each with so many tokens cached."""
    return rows * (2.0 * matmul_params(model) + 4.0 * cached * model.num_heads * model.head_dim * model.num_layers)


@dataclasses.dataclass(frozen=True)
class Guess:
    """bytes: that a chip holds at the worst moment of a pass. sent: bytes that it sends in a pass, for each row that it learns from."""

    mesh: dict[str, int]
    bytes: float
    sent: float


def guess(work: Work, mesh: dict[str, int]) -> Guess:
    """For a mesh, all axes with their sizes, that divides the model and the rows."""
    model, fsdp, sequence, tensor = work.model, mesh["fsdp"], mesh["sequence"], mesh["tensor"]
    weights = declare(model)
    frozen = 0.0 if work.lora is None else 4 * _on_a_chip(weights, mesh)
    learned = _on_a_chip(weights if work.lora is None else adapters.declare(model, work.lora), mesh)
    tokens = work.rows / (mesh["data"] * fsdp * sequence) * work.length  # on one chip
    wide = model.hidden_size * work.compute_bytes
    layer = (matmul_params(model) - model.vocab_size * model.hidden_size) / model.num_layers / tensor
    inputs = tokens * wide * model.num_layers
    if work.remat != "full":
        inputs *= 2 + 4 * model.intermediate_size / model.hidden_size / tensor  # the products of a layer, more or less
    one_layer = layer * (2 * work.compute_bytes + 4) + tokens * work.compute_bytes * (
        6 * model.hidden_size + (4 * model.intermediate_size + 6 * model.num_heads * model.head_dim) / tensor
    )
    head = model.vocab_size / tensor * (8 * model.hidden_size + 12 * min(tokens, HEAD_TOKENS))
    ways = fsdp * sequence  # 8.3 bytes a weight were seen on v5e-16:
    gathered = 0.0 if ways == 1 else (ways - 1) / ways * (4 * work.compute_bytes * model.num_params / tensor)
    keys = 2 * tokens * model.num_kv_heads * model.head_dim / tensor * model.num_layers  # of a stretch, with values: forward twice, then with gradients
    exchanged = (sequence - 1) * keys * (3 * work.compute_bytes + 4)
    summed = 0.0 if tensor == 1 else (tensor - 1) / tensor * 2 * 6 * inputs
    replicated = 0.0 if mesh["data"] == 1 else 2 * (mesh["data"] - 1) / mesh["data"] * 4 * learned
    needed = STATE_BYTES * learned + frozen + inputs + max(one_layer, head)
    return Guess(mesh, needed, (gathered + exchanged + summed + replicated) / (work.rows / (mesh["data"] * fsdp) * fsdp))


def meshes(model: LlamaConfig, chips: int) -> list[dict[str, int]]:
    """Every factorisation of the chips over fsdp and tensor that divides the model."""
    found = [{"data": 1, "fsdp": chips // tensor, "sequence": 1, "tensor": tensor} for tensor in range(1, chips + 1) if chips % tensor == 0]
    return [mesh for mesh in found if all(divides(weight, mesh) for weight in _leaves(declare(model)))]


def divides(weight, mesh: dict[str, int]) -> bool:
    return all(size % ways == 0 for size, ways in zip(weight.shape, parts(weight.axes, mesh), strict=True))


def candidates(work: Work, chips: int, hbm: float, most: int = 3) -> list[Guess]:
    """The meshes that are worth compiling, best first: those that seem to fit (with a quarter to spare for a rough guess), by bytes sent; where
    none seems to, the smallest. A chip has one row where `work.rows` would not divide."""
    guesses = [guess(dataclasses.replace(work, rows=rows_for(work.rows, mesh)), mesh) for mesh in meshes(work.model, chips)]
    fitting = sorted((one for one in guesses if one.bytes < 1.25 * hbm), key=lambda one: (one.bytes > hbm, one.sent))
    return (fitting or sorted(guesses, key=lambda one: one.bytes))[:most]


def rows_for(rows: int, mesh: dict[str, int]) -> int:
    """The rows of a pass: as asked for, rounded up to what the mesh divides."""
    ways = mesh["data"] * mesh["fsdp"]
    return math.ceil(rows / ways) * ways


def _on_a_chip(declared, mesh: dict[str, int]) -> float:
    """Numbers of a tree of weights that one chip holds."""
    return sum(math.prod(weight.shape) / math.prod(parts(weight.axes, mesh)) for weight in _leaves(declared))


def _leaves(declared) -> list:
    return [leaf for value in declared.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
