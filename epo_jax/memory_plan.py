"""How many bytes a run needs on each device, worked out from shapes before anything is made.

What is exact: parameters, gradients, the optimizer's moments and the playing copy, as each is an array whose shape and sharding are known. The
key/value cache is what it can grow to: every slot with a whole context. Activations are an estimate: what the backward pass keeps of every layer
(`model.remat`), one layer's intermediate values twice (computed again, and their gradients), the logits of one chunk of the head three times
(logits, probabilities, gradient), a copy of all layers where less than float32 is computed in, and on a CPU, whose attention is not computed in
blocks, its [T,T] scores, or, where the mesh splits rows, keys and values of whole rows with their gradients, and a tile of scores
(`epo_jax.model.attention_sequence`).

How near that is (activations, and the gradient beside the sum, to the temporary memory of the compiled pass; remat full):

    TPU's compiler   Llama-3-8B, bfloat16, T 4096: 1.07 on v5e-16 (fsdp 16), 0.83 on v5p-8 (tensor 4); of all that lies there 1.03, 0.96;
                     of all cells of docs/scaling.md whose pass fits 0.81 to 1.14
    XLA on a CPU     2 layers of width 64, 4 rows: float32 1.03 (T 512) and 0.87 (T 2048); bfloat16 0.74 (T 2048)

It is short at long T on a CPU, and with `tensor`. XLA's own code and fragmentation are not in it; leave a fifth free. `tools/plan.py` compiles the
programs themselves, for devices that need not be there; to choose which meshes to compile for, it begins with this.

Shapes: as in `epo_jax.model.weights`; R rows on one device, T time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from epo_jax.generate.cache import cache_sharding
from epo_jax.learn.losses import chunk_on
from epo_jax.learn.step import dtype_of
from epo_jax.mesh import rows_split_over, shardings_of
from epo_jax.model import lora
from epo_jax.model.config import LlamaConfig
from epo_jax.model.stretches import TILE, stretches

FLOAT32 = 4  # bytes


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device."""

    parameters: int  # float32 masters; with LoRA, the frozen weights and the adapters
    gradients: int  # the sum over the passes of a step, and a pass's own besides; not the layers' where they are added in place (remat full, no LoRA)
    optimizer: int  # two moments
    others: int  # what the loss compares with, a critic's or discriminator's own trunk with gradient and moments
    playing: int  # the weights that sample, where they are not the masters themselves
    cache: int  # keys and values of all slots at their longest
    activations: int
    saving: int  # a copy of what learns, written while the run goes on; on a CPU alone: elsewhere it lies in the host's memory

    @property
    def learning(self) -> int:
        """All that lies there at the worst moment of a pass, where what plays is given up meanwhile."""
        return self.parameters + self.gradients + self.optimizer + self.others + self.activations + self.saving


def plan(
    config: ConfigDict, model: LlamaConfig, mesh: Mesh | AbstractMesh, *, own: Mesh | AbstractMesh | None = None, platform: str = ""
) -> MemoryPlan:
    """The bytes of a run of `config` with this model, on each device of the mesh. A local actor's are not in it.

    own: what a process plays on, where that is a part of the mesh. platform ("cpu", "gpu", "tpu"): of the devices, where the mesh is abstract.
    """
    own, platform = own or mesh, platform or mesh.devices.flat[0].platform
    adapted = lora.from_config(config.model.lora)
    weights, learned = (_numbers_on_a_device(lora.declare(model, each), mesh) for each in (None, adapted))
    layers = _numbers_on_a_device(lora.declare(model, None)["layers"], mesh)
    in_place = adapted is None and config.model.remat == "full"
    compute = jnp.dtype(dtype_of(config.model.compute_dtype)).itemsize
    kind = config.rollout.weights
    copied = {"int8": 1, "bfloat16": 2}.get(kind, compute)
    plain = kind == "compute" and compute == FLOAT32 and adapted is None and own is mesh
    return MemoryPlan(
        parameters=FLOAT32 * (learned if adapted is None else weights + learned),
        gradients=FLOAT32 * (learned + (weights - layers if in_place else learned)),
        optimizer=2 * FLOAT32 * learned,
        others=_others(config, weights, compute),
        playing=0 if plain else copied * _numbers_on_a_device(lora.declare(model, None), own),
        cache=_cache(config, model, own, compute),
        activations=_activations(config, model, mesh, compute, platform, layers),
        saving=3 * FLOAT32 * learned if config.checkpoint.background and platform == "cpu" else 0,
    )


def available() -> int | None:
    """Bytes that one device has, where its platform says so; on a CPU the machine's memory that is free, over the devices that share it."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return free // jax.local_device_count()


def _numbers_on_a_device(declared: dict[str, Any], mesh: Mesh | AbstractMesh) -> int:
    """How many of the numbers of these weights lie on one device."""
    parts = jax.tree.map(lambda weight, sharding: math.prod(sharding.shard_shape(weight.shape)), declared, shardings_of(declared, mesh))
    return sum(jax.tree.leaves(parts))


def _others(config: ConfigDict, weights: int, itemsize: int) -> int:
    trunks = (config.critic.trunk == "own") + (config.learn_from == "stepagent" and config.stepagent.reflection == "inverse")
    compared = config.learn.kl_weight and config.learn.kl_reference != "behaviour" or config.learn_from == "stepagent"
    return weights * (4 * FLOAT32 * trunks + (itemsize if compared else 0))


def _cache(config: ConfigDict, model: LlamaConfig, mesh: Mesh | AbstractMesh, itemsize: int) -> int:
    slots, length = config.rollout.slots, config.rollout.max_context
    shape = (slots, model.num_kv_heads, length, model.head_dim)
    sharding = cache_sharding(mesh if mesh.size > 1 else None, slots=slots, kv_heads=model.num_kv_heads)
    part = math.prod(shape if sharding is None else sharding.shard_shape(shape))
    return 2 * model.num_layers * part * itemsize


def _activations(config: ConfigDict, model: LlamaConfig, mesh: Mesh | AbstractMesh, itemsize: int, platform: str, layers: int) -> int:
    """`layers`: how many numbers of the layers' weights lie on a device."""
    learn, tensor, sequence = config.learn, mesh.shape["tensor"], mesh.shape["sequence"]
    rows = learn.rows // rows_split_over(mesh)
    length = max(learn.length_buckets)
    if learn.packing:
        length, rows = min(2 * learn.max_length, rows * learn.max_length), 1
    width, heads, kv, ff = model.hidden_size, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim, model.intermediate_size
    products = 2 * width + (heads + 2 * kv + 2 * ff) // tensor  # what products with weights give: q, k, v, the two outputs, gate and up
    layer = products + 3 * width + (heads + 2 * ff) // tensor  # and norms, the residual stream, attention's output, the gated values
    kept, scored = (layer, 2 * model.num_layers) if config.model.remat == "none" else (width, 1)
    if sequence > 1:
        gathered = rows * length * (2 * itemsize + 2 * FLOAT32) * kv // tensor
        length = 2 * stretches(mesh, length).chunk  # of the stretch that a device has
        scores = gathered + 3 * FLOAT32 * rows * (model.num_heads // tensor) * min(length // 2, TILE) ** 2
    else:
        scores = scored * FLOAT32 * rows * (model.num_heads // tensor) * length**2 if platform == "cpu" else 0
    tokens = rows * length
    chunk = min(length, chunk_on(platform, -(-learn.rows // rows_split_over(mesh)), model.vocab_size)) * rows
    logits = 3 * FLOAT32 * chunk * model.vocab_size // tensor
    copied = itemsize * layers if itemsize < FLOAT32 else 0
    return itemsize * tokens * (model.num_layers * kept + 2 * layer) + scores + logits + copied
