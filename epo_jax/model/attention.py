"""Attention behind one function, `attend`: splash on TPU, cuDNN on NVIDIA, plain XLA elsewhere and where those cannot; and where the mesh
splits the tokens of a row over devices, what `attention_sequence` makes of it.

One rule everywhere: query t sees key s iff both belong to the same segment (0 = padding, sees and is seen by nobody),
s is not at a later position, and, with a sliding window w, their positions differ by less than w. Within a segment positions
grow with the index, so "not at a later position" is causality for packed rows and for caches alike.

A row can branch, as a tree that has one trunk: after the trunk come continuations of its beginnings, and each sees the trunk up to where it
leaves it, and itself. So several answers to one question, or to many questions of one conversation, are scored while it is read once.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.model import attention_gpu, attention_sequence, attention_tpu
from epo_jax.model.stretches import ways_of

QUERY_BLOCK = 128  # queries at a time in the plain path; longer sequences use at most MAX_BLOCKS of them
MAX_BLOCKS = 16
TRUNK = -1  # in `forks`: on no branch
MASKED = -1e30  # finite, so that a row that sees nothing (padding) gives numbers and not NaN


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    sliding_window: int | None = None,
    aligned: bool = False,
    mesh: Mesh | None = None,
    forks: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention with shared key/value heads.

    q [B,T,N,H]; k, v [B,S,K,H]; positions and segment ids int32 [B,T] and [B,S] -> [B,T,N,H] in q's dtype.
    `aligned`: queries and keys are the same tokens in the same order (training), so that no key of a higher index is seen. On a mesh whose
    axis `sequence` is above 1 these are in the order of the stretches (`epo_jax.model.stretches`).
    `forks` int32 [B,T], of aligned rows that branch: the position at which a token's branch leaves the trunk, TRUNK on it.
    `implementation`: "xla", "cudnn", "splash", or (over such a mesh) "stretches", of which the last two cannot where rows branch; None lets
    `choose` decide. Rows of padding queries hold finite numbers without meaning.
    """
    how = implementation or choose(q, k, aligned=aligned and forks is None, mesh=mesh)
    if how == "stretches":
        return attention_sequence.attend(q, k, v, positions=q_positions, segment_ids=q_segment_ids, sliding_window=sliding_window, mesh=mesh)
    if how == "splash":
        return attention_tpu.splash(q, k, v, q_segment_ids, sliding_window=sliding_window, mesh=mesh)
    if how == "cudnn":
        mask = visible(q_positions, kv_positions, q_segment_ids, kv_segment_ids, sliding_window, forks, forks)
        return attention_gpu.cudnn(q, k, v, mask, aligned=aligned)
    if how != "xla":
        raise ValueError(f"attention is 'xla', 'cudnn', 'splash' or 'stretches', not {how!r}")
    return _xla(q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids, sliding_window, aligned, forks)


def choose(q: jax.Array, k: jax.Array, *, aligned: bool, mesh: Mesh | None = None, device: jax.Device | None = None) -> str:
    """The fastest implementation that the device and the shapes allow: "splash", "cudnn" or "xla"; where tokens are split, "splash" or "stretches".

    The device is the mesh's; without a mesh, the one given, or the default.
    """
    device = mesh.devices.flat[0] if mesh is not None else device or jax.devices()[0]
    if device.platform == "tpu" and attention_tpu.can(q, k, aligned=aligned, mesh=mesh):
        return "splash"
    if aligned and ways_of(mesh) > 1:
        return "stretches"
    if device.platform in ("gpu", "cuda") and attention_gpu.can(q, k, device):
        return "cudnn"
    return "xla"


def visible(
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    sliding_window: int | None,
    q_forks: jax.Array | None = None,
    kv_forks: jax.Array | None = None,
) -> jax.Array:
    """The rule above as a mask: bool [B,T,S]."""
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (q_segment_ids[:, :, None] != 0) & (distance >= 0)
    if q_forks is not None:
        left, key_left = q_forks[:, :, None], kv_forks[:, None, :]
        mask &= (left == key_left) | ((key_left == TRUNK) & (kv_positions[:, None, :] < left))
    return mask if sliding_window is None else mask & (distance < sliding_window)


def _xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    sliding_window: int | None,
    aligned: bool,
    forks: jax.Array | None,
) -> jax.Array:
    """Aligned: blocks of queries, each against the keys it can see by their index: half of the work, and scores that fit
    a cache (2.5 times as fast on CPU, forward and backward, at T = 512)."""
    queries = q.shape[1]
    block = max(QUERY_BLOCK, -(-queries // MAX_BLOCKS))
    if not aligned or queries <= block:
        mask = visible(q_positions, kv_positions, q_segment_ids, kv_segment_ids, sliding_window, forks, forks)
        return _xla_block(q, k, v, mask)
    blocks = []
    for start in range(0, queries, block):
        rows, keys = slice(start, start + block), slice(0, start + block)
        branches = (None, None) if forks is None else (forks[:, rows], forks[:, keys])
        mask = visible(q_positions[:, rows], kv_positions[:, keys], q_segment_ids[:, rows], kv_segment_ids[:, keys], sliding_window, *branches)
        blocks.append(_xla_block(q[:, rows], k[:, keys], v[:, keys], mask))
    return jnp.concatenate(blocks, axis=1)


def _xla_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B,T,N,H], k and v [B,S,K,H], mask [B,T,S] -> [B,T,N,H]; heads first, so that the products are batches of matrices."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    groups = heads // kv_heads
    q = (q * (1.0 / math.sqrt(head_dim))).reshape(batch, queries, kv_heads, groups, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * queries, head_dim)
    scores = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, groups, queries, keys) + jnp.where(mask, 0.0, MASKED)[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(batch, kv_heads, groups * queries, keys)
    out = jnp.matmul(weights, v.transpose(0, 2, 1, 3)).reshape(batch, kv_heads, groups, queries, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)
