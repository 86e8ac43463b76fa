"""A name for weights: equal weights have equal names, wherever they lie and however they are split over devices."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(params: Any) -> str:
    """16 hexadecimal digits from names, shapes, dtypes and every bit of a tree of float arrays, computed where the arrays lie."""
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} {_checksum(array)}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _bits(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2^32, so that no order of summation matters: of the bits weighted by odd numbers of the place, and of them scrambled."""
    width = {2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32), jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _checksum(array: jax.Array) -> str:
    return " ".join(f"{int(np.asarray(part)):08x}" for part in _bits(array))
