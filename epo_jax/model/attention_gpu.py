"""Fused attention by cuDNN, on NVIDIA."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def can(q: jax.Array, k: jax.Array, device: Any) -> bool:
    """Whether cuDNN takes these shapes: q [B,T,N,H], k [B,S,K,H] on an Ampere or newer card.

    Its limits: half precision, head dim a multiple of 8 up to 128 (256 from Hopper on), and, with a mask and a gradient, even
    lengths. A single query (decoding) is left to XLA: reading the cache is all there is to it.
    """
    capability = float(getattr(device, "compute_capability", None) or 0)  # absent on AMD
    head_dim_limit = 256 if capability >= 9.0 else 128
    return (
        capability >= 8.0
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= head_dim_limit
        and q.shape[1] > 1
        and q.shape[1] % 2 == 0
        and k.shape[1] % 2 == 0
    )


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, aligned: bool, implementation: str = "cudnn") -> jax.Array:
    """q [B,T,N,H], k and v [B,S,K,H], mask bool [B,T,S] -> [B,T,N,H]. `aligned` lets the kernel skip keys of a higher index."""
    return jax.nn.dot_product_attention(
        q,
        k.astype(q.dtype),
        v.astype(q.dtype),
        mask=mask[:, None],
        scale=1.0 / math.sqrt(q.shape[-1]),
        is_causal=aligned,
        implementation=implementation,
    )
