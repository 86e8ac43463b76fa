"""Splash attention on TPU: blocks that causality or the sliding window excludes are never computed, segments are masked inside."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epo_jax.mesh import spec
from epo_jax.model.stretches import Stretches, ways_of

BLOCK_SIZES = (512, 256, 128)  # tokens in a tile: the largest that divides the length, which is padded to a multiple of the last


def can(q: jax.Array, k: jax.Array, *, aligned: bool, mesh: Mesh | None = None) -> bool:
    """Whether splash applies: queries and keys are the same tokens, enough of them to fill a tile; where rows are split, whole tiles in every chunk."""
    if not aligned or q.shape[1] != k.shape[1]:
        return False
    return q.shape[1] >= BLOCK_SIZES[-1] if ways_of(mesh) == 1 else q.shape[1] % (2 * ways_of(mesh) * BLOCK_SIZES[-1]) == 0


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    sliding_window: int | None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """q [B,T,N,H], k and v [B,T,K,H], segment ids int32 [B,T] -> [B,T,N,H].

    The kernel knows tokens by index: causal, or a window of indices. That is the rule of `epo_jax.model.attention` where
    positions count up by one within a segment. Padding (segment 0) sees the padding before it, which nobody reads.
    On a mesh each device computes its rows and its heads, since the compiler cannot split a kernel; where it splits rows, see
    `_over_stretches`. `interpret` runs the kernel without a TPU, slowly.
    """
    if ways_of(mesh) > 1:
        return _over_stretches(q, k, v, segment_ids, sliding_window, mesh, interpret)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        length = q.shape[1]
        q, k, v, ids = (_pad_length(x) for x in (q * (1.0 / math.sqrt(q.shape[-1])), k, v, ids))
        kernel = _kernel(q.shape[1], q.shape[2], sliding_window, interpret)

        def row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(q=ids, kv=ids))

        out = jax.vmap(row)(*(x.transpose(0, 2, 1, 3) for x in (q, k, v)), ids)
        return out.transpose(0, 2, 1, 3)[:, :length]

    if mesh is not None:
        queries, ids = spec("batch", "length", "heads", "head_dim"), spec("batch", "length")
        keys = spec("batch", "length", "kv_heads", "head_dim")
        # check_vma: a kernel does not say over which axes its output varies.
        local = jax.shard_map(local, mesh=mesh, in_specs=(queries, keys, keys, ids), out_specs=queries, check_vma=False)
    return local(q, k, v, segment_ids)


def _over_stretches(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sliding_window: int | None, mesh: Mesh, interpret: bool
) -> jax.Array:
    """As `splash`, for rows in the order of the stretches (`epo_jax.model.stretches`): each device gathers the keys and values of whole rows, puts
    them in the order of the conversation, and computes what its own queries see (Llama 3's context parallelism; MaxText does the same)."""
    length, ways = q.shape[1], mesh.shape["sequence"]
    split = Stretches(ways, length, length // (2 * ways))
    places = split.places  # of the queries in the conversation
    kernel = _kernel(length, q.shape[2] // mesh.shape["tensor"], sliding_window, interpret, places, ways)

    def local(kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, own: jax.Array, ids: jax.Array) -> jax.Array:
        k, v = (split.collect(jax.lax.all_gather(x, "sequence", axis=1, tiled=True)) for x in (k, v))

        def row(q: jax.Array, k: jax.Array, v: jax.Array, own: jax.Array, ids: jax.Array) -> jax.Array:
            return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(q=own, kv=ids))

        q = q * (1.0 / math.sqrt(q.shape[-1]))
        return jax.vmap(row)(*(x.transpose(0, 2, 1, 3) for x in (q, k, v)), own, split.collect(ids)).transpose(0, 2, 1, 3)

    queries, keys = spec("batch", "length", "heads", "head_dim"), spec("batch", "length", "kv_heads", "head_dim")
    of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, "sequence")))
    specs = (of_kernel, queries, keys, keys, spec("batch", "length"), spec("batch"))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)(kernel, q, k, v, segment_ids, segment_ids)


def _kernel(
    length: int, heads: int, sliding_window: int | None, interpret: bool, places: np.ndarray | None = None, shards: int = 1
) -> splash_attention.SplashAttentionKernel:
    """For q [N,T,H], k and v [K,T,H]. Made anew in every trace, whose arrays it holds. `places`: where each query stands, if not in order;
    `shards`: over how many devices the queries are split, each with an early and a late chunk."""
    shape = (length, length)
    if sliding_window is None:
        mask: splash_attention.Mask = splash_attention.CausalMask(shape)
    else:
        mask = splash_attention.LocalMask(shape, (sliding_window - 1, 0), offset=0)
    if places is not None:
        mask.q_sequence = places
    chunk = length if shards == 1 else length // (2 * shards)
    block = next(size for size in BLOCK_SIZES if chunk % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=interpret
    )


def _pad_length(x: jax.Array) -> jax.Array:
    """Zeros (padding's segment) at the end of dimension 1, up to a whole tile."""
    return jnp.pad(x, [(0, -size % BLOCK_SIZES[-1] if axis == 1 else 0) for axis, size in enumerate(x.shape)])
