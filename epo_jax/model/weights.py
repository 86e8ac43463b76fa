"""Every weight of the model, declared once: shape, logical axes (see `epo_jax.mesh.RULES`) and initialisation.

The parameters are a nested dict of arrays with the layers' weights stacked along a first axis L:

    embed [V,D]                                  final_norm [D]            head [D,V] (absent when tied)
    layers: attn_norm [L,D]  wq [L,D,N,H]  wk, wv [L,D,K,H]  wo [L,N,H,D]
            mlp_norm [L,D]   w_gate, w_up [L,D,F]            w_down [L,F,D]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from epo_jax.model.config import LlamaConfig

Params = dict[str, Any]  # nested dict str -> jax.Array


@dataclasses.dataclass(frozen=True)
class Weight:
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # one logical name for each dimension
    std: float | None  # standard deviation of the initial normal distribution; None: ones (norm scales)

    def initialize(self, key: jax.Array, dtype: Any) -> jax.Array:
        if self.std is None:
            return jnp.ones(self.shape, dtype)
        return (self.std * jax.random.normal(key, self.shape, jnp.float32)).astype(dtype)


def declare(config: LlamaConfig) -> dict[str, Any]:
    """The nested dict of the parameters, with a `Weight` for each array.

    Matrices start with variance 1 / fan-in; those that write into the residual stream are divided by sqrt(2 L), so that
    the stream's variance does not grow with depth (GPT-2, section 2.3).
    """
    v, d, f = config.vocab_size, config.hidden_size, config.intermediate_size
    n, k, h, layers = config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
    into, residual = 1 / math.sqrt(d), 1 / math.sqrt(2 * layers)

    def stacked(shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> Weight:
        return Weight((layers, *shape), ("layers", *axes), std)

    weights: dict[str, Any] = {
        "embed": Weight((v, d), ("table_rows", "table_model"), 0.02),
        "layers": {
            "attn_norm": stacked((d,), ("norm",), None),
            "wq": stacked((d, n, h), ("model", "heads", "head_dim"), into),
            "wk": stacked((d, k, h), ("model", "kv_heads", "head_dim"), into),
            "wv": stacked((d, k, h), ("model", "kv_heads", "head_dim"), into),
            "wo": stacked((n, h, d), ("heads", "head_dim", "model"), residual / math.sqrt(n * h)),
            "mlp_norm": stacked((d,), ("norm",), None),
            "w_gate": stacked((d, f), ("model", "ff"), into),
            "w_up": stacked((d, f), ("model", "ff"), into),
            "w_down": stacked((f, d), ("ff", "model"), residual / math.sqrt(f)),
        },
        "final_norm": Weight((d,), ("norm",), None),
    }
    if not config.tie_embeddings:
        weights["head"] = Weight((d, v), ("model", "vocab"), into)
    return weights


def init_params(config: LlamaConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters. Each array's key is folded from its place in the tree, so the order of creation does not matter."""
    weights, tree = jax.tree.flatten(declare(config))
    return jax.tree.unflatten(tree, [w.initialize(jax.random.fold_in(key, i), dtype) for i, w in enumerate(weights)])
