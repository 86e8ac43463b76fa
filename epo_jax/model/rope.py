"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), with Llama 3.1's frequency scaling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.model.config import LlamaConfig, RopeScaling


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each rotated pair, float32 [H/2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    return (plain if config.rope_scaling is None else _scale(plain, config.rope_scaling)).astype(np.float32)


def _scale(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1's rule: waves longer than the original context / low_freq_factor turn `factor` times slower, those
    shorter than the original context / high_freq_factor are untouched, and between them the two are blended."""
    original = scaling.original_max_position_embeddings
    turns = original * plain / (2 * math.pi)  # full turns that a pair makes over the original context
    kept = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / scaling.factor


def angles(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine for `rotate`: positions [...] int32 -> two float32 arrays [..., H/2]."""
    radians = positions[..., None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(radians), jnp.sin(radians)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [..., heads, H] by angles [..., H/2]; a pair is (i, i + H/2), as in Hugging Face's weights."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
