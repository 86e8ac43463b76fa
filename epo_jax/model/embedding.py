"""The rows of the embedding table that tokens name, on a mesh or without one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.mesh import RULES, spec


def embed(table: jax.Array, tokens: jax.Array, dtype: Any, mesh: Mesh | None = None) -> jax.Array:
    """table [V,D], tokens int32 [B,T] -> [B,T,D] in `dtype`; on a mesh in parts of B and T.

    There each device looks up its part of D for all tokens that share the table with it, and exchanges that for all of D of its own. The compiler,
    left to itself, does so for B or T alone; where both are split, it gathers all activations on every device.
    """
    if mesh is None:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    fsdp, sequence, tensor = RULES["table_model"]  # the first varies slowest along D

    def gather(x: jax.Array, axis: str, dimension: int) -> jax.Array:
        return x if mesh.shape[axis] == 1 else jax.lax.all_gather(x, axis, axis=dimension, tiled=True)

    def exchange(x: jax.Array, axis: str, dimension: int) -> jax.Array:
        return x if mesh.shape[axis] == 1 else jax.lax.all_to_all(x, axis, split_axis=dimension, concat_axis=2, tiled=True)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        tokens = gather(gather(tokens, sequence, 1), fsdp, 0)
        x = gather(jnp.take(table, tokens, axis=0).astype(dtype), tensor, 2)
        return exchange(exchange(x, sequence, 1), fsdp, 0)

    specs = {"in_specs": (spec("table_rows", "table_model"), spec("batch", "length")), "out_specs": spec("batch", "length", "activation")}
    # check_vma: what is gathered over `tensor` is the same on all of it, which the check does not see.
    return jax.shard_map(local, mesh=mesh, check_vma=False, **specs)(table, tokens)
