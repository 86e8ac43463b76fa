"""The key/value cache: one slot a session, one pair of arrays a layer.

A cache entry's index in its slot is its token's position in the sequence, so a session's cache is valid up to some
length and garbage after it, and nothing ever moves. The arrays are donated to every program that changes them.
Their capacity C follows the longest session: attention in place over arrays that fit costs less than over a prefix
sliced from larger ones, and growing them is rare.

Shapes: slots × K key/value heads × C (capacity in tokens) × H head dim; R rows of one program's batch, A attended prefix.
Heads come before tokens because attention reads the cache head by head, and keys have their tokens last because it contracts
over H: so no step has to transpose either (a step with keys [K,C,H] takes twice the time for its attention on CPU).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epo_jax.errors import UserError

Caches = list[tuple[jax.Array, jax.Array]]  # a layer each: keys [slots,K,H,C] and values [slots,K,C,H]
KEYS_AXIS, VALUES_AXIS = 3, 2  # of C

BATCH_AXES = ("data", "fsdp", "sequence")  # the mesh axes over which slots are divided: a training batch's rows, or parts of them, lie on these


def doubling(smallest: int, largest: int) -> tuple[int, ...]:
    """Bucket sizes: smallest, 2·smallest, 4·smallest, ... below largest, and largest itself."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return (*sizes, largest)


def bucket(number: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending sizes that holds `number`; ValueError where none does."""
    for size in sizes:
        if number <= size:
            return size
    raise ValueError(f"{number} is above the largest bucket {sizes[-1]}")


def cache_sharding(mesh: Mesh | None, *, slots: int, kv_heads: int) -> NamedSharding | None:
    """Keys or values over a mesh: slots over data, fsdp and sequence, heads over tensor (whole where the heads do not divide)."""
    if mesh is None:
        return None
    parts = row_parts(mesh)
    if slots % parts:
        raise UserError(f"{slots} cache slots do not divide over data × fsdp × sequence = {parts} devices: make slots a multiple of {parts}")
    ways = mesh.shape.get("tensor", 1)
    heads = ("tensor",) if ways > 1 and kv_heads % ways == 0 else ()
    return NamedSharding(mesh, PartitionSpec(*_spell(_batch_axes(mesh), heads)))


def row_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """An array of rows [R, ...] over a mesh, divided as the slots are."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(*_spell(_batch_axes(mesh))))


def row_parts(mesh: Mesh | None) -> int:
    """Over how many devices the rows are divided."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def _spell(*dimensions: tuple[str, ...]) -> list[Any]:
    """A partition spelt as jit spells those of its results (no axis of size 1, no None at the end): programs meet equal
    shardings whether a cache is new or was used before, and are not compiled twice."""
    parts: list[Any] = [None if not axes else axes[0] if len(axes) == 1 else axes for axes in dimensions]
    while parts and parts[-1] is None:
        parts.pop()
    return parts


def allocate(
    *, layers: int, slots: int, capacity: int, kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike, sharding: jax.sharding.Sharding
) -> Caches:
    """Zeroed caches, made in place in their sharding: 2·L·slots·C·K·H entries."""
    keys, values = (slots, kv_heads, head_dim, capacity), (slots, kv_heads, capacity, head_dim)
    return [(jnp.zeros(keys, dtype, device=sharding), jnp.zeros(values, dtype, device=sharding)) for _ in range(layers)]


def capacity_of(caches: Caches) -> int:
    """C."""
    return caches[0][1].shape[VALUES_AXIS]


def resize(caches: Caches, capacity: int, sharding: jax.sharding.Sharding) -> Caches:
    """The caches with C = capacity: zeros added at the end, or entries after `capacity` given up. One array at a time, so
    both sizes of the whole never exist together."""
    resized = []
    for layer in range(len(caches)):
        keys, values = caches[layer]
        caches[layer] = ()
        keys = _resizer(KEYS_AXIS, capacity, sharding)(keys)
        resized.append((keys, _resizer(VALUES_AXIS, capacity, sharding)(values)))
    return resized


@functools.cache
def _resizer(axis: int, capacity: int, sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    def one(cache: jax.Array) -> jax.Array:
        kept = _first(cache, capacity, axis)
        widths = [(0, 0)] * 4
        widths[axis] = (0, capacity - kept.shape[axis])
        return jnp.pad(kept, widths)

    return jax.jit(one, out_shardings=sharding)


def _first(cache: jax.Array, number: int, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(cache, 0, min(number, cache.shape[axis]), axis=axis)


def copy(caches: Caches, source: jax.Array, target: jax.Array, attended: int) -> Caches:
    """The caches with the first `attended` entries of slot `target` overwritten by those of slot `source`."""

    def one(cache: jax.Array, axis: int) -> jax.Array:
        row = jnp.take(_first(cache, attended, axis), source[None], axis=0)
        return jax.lax.dynamic_update_slice(cache, row, (target, 0, 0, 0))

    return [(one(keys, KEYS_AXIS), one(values, VALUES_AXIS)) for keys, values in caches]


def read(caches: Caches, rows: jax.Array | None, attended: int) -> Caches:
    """The first `attended` entries of some slots: keys [R,K,H,A] and values [R,K,A,H] a layer. rows int32[R] are slots (any row
    may be out of range as padding: what it reads is never used); None means every slot in order."""

    def one(cache: jax.Array, axis: int) -> jax.Array:
        prefix = _first(cache, attended, axis)
        return prefix if rows is None else jnp.take(prefix, rows, axis=0, mode="clip")

    return [(one(keys, KEYS_AXIS), one(values, VALUES_AXIS)) for keys, values in caches]


def entries(caches: Caches, positions: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Keys and values [R,K,S,H] a layer at positions[R,S] of each row, as `write` takes them."""
    new = []
    for keys, values in caches:
        chosen = jnp.take_along_axis(keys, positions[:, None, None, :], axis=KEYS_AXIS)
        new.append((jnp.swapaxes(chosen, 2, 3), jnp.take_along_axis(values, positions[:, None, :, None], axis=VALUES_AXIS)))
    return new


def write(caches: Caches, rows: jax.Array | None, positions: jax.Array, new: list[tuple[jax.Array, jax.Array]]) -> Caches:
    """The caches with entries new[R,K,S,H] a layer put at positions[R,S] of slots rows[R] (None: every slot in order).
    A position outside 0..C-1, or a row outside the slots, is dropped."""
    slots, heads = caches[0][1].shape[:2]
    index = jnp.where(positions < 0, capacity_of(caches), positions)[:, None, :]  # a negative index would count from the end
    row, head = (jnp.arange(slots) if rows is None else rows)[:, None, None], jnp.arange(heads)[:, None]
    written = []
    for (keys, values), (new_keys, new_values) in zip(caches, new, strict=True):
        keys = keys.at[row, head, :, index].set(new_keys.astype(keys.dtype), mode="drop")
        written.append((keys, values.at[row, head, index].set(new_values.astype(values.dtype), mode="drop")))
    return written
