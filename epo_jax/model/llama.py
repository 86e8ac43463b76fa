"""The Llama transformer (Touvron et al. 2023, arXiv:2302.13971), and Mistral: RMSNorm, rope, grouped-query attention, SwiGLU.

The numerics are pure functions over the parameters of `epo_jax.model.weights`; `Llama` holds the same arrays as a Flax NNX
module. Training and prefill scan over the stacked layers; decoding is unrolled, with one cache for each layer.
Shapes: B batch, T time, D model, F feed-forward, N query heads, K key/value heads, H head dim, V vocabulary, L layers,
S new tokens, C cache capacity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh

from epo_jax.mesh import constrain, gather
from epo_jax.model import rope, stack
from epo_jax.model.attention import attend
from epo_jax.model.config import LlamaConfig
from epo_jax.model.dense import linear, of_integers, project, two_rows
from epo_jax.model.embedding import embed
from epo_jax.model.stretches import stretches
from epo_jax.model.weights import Params, init_params

__all__ = ["Llama", "decode_step", "hidden_states", "init_params", "logits", "model_from", "params_of", "prefill", "unstack"]


class Llama(nnx.Module):
    """The parameters as a Flax NNX module; layer weights are stacked, [L, ...]. Works under `nnx.eval_shape`."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, param_dtype: Any = jnp.float32) -> None:
        self.config = config
        params = init_params(config, rngs.params(), param_dtype)
        self.embed = nnx.Param(params["embed"])
        self.layers = nnx.Dict({name: nnx.Param(array) for name, array in params["layers"].items()})
        self.final_norm = nnx.Param(params["final_norm"])
        if not config.tie_embeddings:
            self.head = nnx.Param(params["head"])

    def __call__(self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, **options: Any) -> jax.Array:
        """Logits [B,T,V], float32; options as for `hidden_states`."""
        params = params_of(self)
        return logits(params, self.config, hidden_states(params, self.config, tokens, positions, segment_ids, **options))


def params_of(model: Llama) -> Params:
    """The module's parameters as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def model_from(config: LlamaConfig, params: Params) -> Llama:
    """The inverse of `params_of`; no array is copied."""
    model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def hidden_states(
    params: Params,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    forks: jax.Array | None = None,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    mesh: Mesh | None = None,
) -> jax.Array:
    """The last layer's output after the final norm: tokens, positions, segment_ids int32 [B,T] -> [B,T,D] in compute_dtype.

    Token t sees s <= t of its own segment (0 = padding), and where rows branch what `attention` says of their `forks`. `remat` trades memory
    for time in the backward pass, as `stack.run` says; params["layers"] may be `stack.Summed`. On a mesh whose axis `sequence` is above 1, where
    no row may branch, the result is [B,T',D], in the order of `stretches.spread`.
    """
    tokens, positions, segment_ids = (stretches(mesh, tokens.shape[1]).spread(x) for x in (tokens, positions, segment_ids))
    x = constrain(embed(params["embed"], tokens, compute_dtype, mesh), mesh, "batch", "length", "activation")
    cos, sin = rope.angles(config, positions)

    def layer(x: jax.Array, weights: Params) -> jax.Array:
        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(
                q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segment_ids, kv_segment_ids=segment_ids,
                sliding_window=config.sliding_window, aligned=True, forks=forks, mesh=mesh,
            )  # fmt: skip

        x, _, _ = _block(weights, config, x, cos, sin, attention)
        return constrain(x, mesh, "batch", "length", "activation")

    x = stack.run(layer, params["layers"], x, remat)
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps)


def logits(params: Params, config: LlamaConfig, hidden: jax.Array, *, mesh: Mesh | None = None) -> jax.Array:
    """hidden [..., D] -> [..., V], float32."""
    if "head" not in params:  # tied to the embedding
        table = gather(params["embed"].astype(hidden.dtype), mesh, ("table_rows", "table_model"), ("vocab", "activation"))
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
    if isinstance(params["head"], qwix.QArray):
        return of_integers(hidden, params["head"])
    head = gather(params["head"].astype(hidden.dtype), mesh, ("model", "vocab"), ("activation", "vocab"))

    def product(rows: jax.Array) -> jax.Array:
        return jnp.einsum("...d,dv->...v", rows, head, preferred_element_type=jnp.float32)

    return product(hidden) if hidden.dtype == jnp.float32 else two_rows(product, hidden)


def prefill(
    params: Params,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    *,
    compute_dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs new tokens of conversations whose earlier keys and values are cached.

    tokens, positions int32 [B,S]; positions count on from what is cached, -1 marks padding; caches [L,B,K,H,C] of keys
    and [L,B,K,C,H] of values, slot = position.
    Returns hidden [B,S,D] and the new keys and values [L,B,S,K,H], which the caller writes into its cache.
    """
    capacity = k_cache.shape[4]
    segments = (positions >= 0).astype(jnp.int32)
    start = jnp.min(jnp.where(positions >= 0, positions, capacity), axis=1)  # tokens cached before, [B]
    slots = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (k_cache.shape[1], capacity))
    kv_positions = jnp.concatenate([slots, positions], axis=1)
    kv_segments = jnp.concatenate([(slots < start[:, None]).astype(jnp.int32), segments], axis=1)
    cos, sin = rope.angles(config, positions)

    def layer(x: jax.Array, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weights, k_old, v_old = xs

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            keys = jnp.concatenate([_keys_of(k_old).astype(k.dtype), k], axis=1)
            values = jnp.concatenate([_values_of(v_old).astype(v.dtype), v], axis=1)
            return attend(
                q, keys, values, q_positions=positions, kv_positions=kv_positions, q_segment_ids=segments,
                kv_segment_ids=kv_segments, sliding_window=config.sliding_window,
            )  # fmt: skip

        x, k, v = _block(weights, config, x, cos, sin, attention)
        return x, (k.astype(k_old.dtype), v.astype(v_old.dtype))

    x, (k_new, v_new) = jax.lax.scan(layer, embed(params["embed"], tokens, compute_dtype), (params["layers"], k_cache, v_cache))
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps), k_new, v_new


def decode_step(
    layer_params: list[Params],
    rest_params: Params,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    caches: list[tuple[jax.Array, jax.Array]],
    *,
    compute_dtype: Any = jnp.float32,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """One token for each sequence: tokens, positions int32 [B] -> logits [B,V] float32 and the caches with the token in them.

    `caches`: for each layer k [B,K,H,C] and v [B,K,C,H] (as the products with the queries and the weights read them: in any
    other order, every step would transpose the whole cache); row b is written at slot positions[b] and read from slot 0 to there.
    A row at position -1 is idle: its cache stays as it was and its logits mean nothing.
    """
    batch, kv_heads, capacity = caches[0][1].shape[:3]
    rows, heads = jnp.arange(batch)[:, None], jnp.arange(kv_heads)
    slot = jnp.where(positions >= 0, positions, capacity)[:, None]  # out of range: the write is dropped
    slots = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (batch, capacity))
    ones = jnp.ones((batch, 1), jnp.int32)
    cos, sin = rope.angles(config, positions[:, None])
    x = embed(rest_params["embed"], tokens[:, None], compute_dtype)
    written: list[tuple[jax.Array, jax.Array]] = []
    for weights, (k_cache, v_cache) in zip(layer_params, caches, strict=True):

        def attention(q: jax.Array, k: jax.Array, v: jax.Array, k_cache=k_cache, v_cache=v_cache) -> jax.Array:
            k_cache = k_cache.at[rows, heads, :, slot].set(k[:, 0].astype(k_cache.dtype), mode="drop")
            v_cache = v_cache.at[rows, heads, slot].set(v[:, 0].astype(v_cache.dtype), mode="drop")
            written.append((k_cache, v_cache))
            return attend(
                q, _keys_of(k_cache).astype(q.dtype), _values_of(v_cache).astype(q.dtype), q_positions=positions[:, None], kv_positions=slots,
                q_segment_ids=ones, kv_segment_ids=jnp.ones_like(slots), sliding_window=config.sliding_window,
            )  # fmt: skip

        x, _, _ = _block(weights, config, x, cos, sin, attention)
    hidden = _rms_norm(x[:, 0], rest_params["final_norm"], config.rms_norm_eps)
    return logits(rest_params, config, hidden), written


def unstack(params: Params) -> tuple[list[Params], Params]:
    """For `decode_step`: a list with one dict for each layer, and the parameters that are not in a layer."""
    layers = params["layers"]
    count = layers["attn_norm"].shape[0]
    rest = {name: array for name, array in params.items() if name != "layers"}
    return [jax.tree.map(lambda array, i=i: array[i], layers) for i in range(count)], rest


def _block(weights: Params, config: LlamaConfig, x: jax.Array, cos: jax.Array, sin: jax.Array, attention):
    """One layer: x [B,T,D] -> x, and the keys and values [B,T,K,H] (rotated) that it used. `attention(q, k, v)` -> [B,T,N,H]."""
    dtype = x.dtype
    h = _rms_norm(x, weights["attn_norm"], config.rms_norm_eps)
    q = rope.rotate(_adapted(project, h, weights, "wq"), cos, sin)
    k = rope.rotate(_adapted(project, h, weights, "wk"), cos, sin)
    v = _adapted(project, h, weights, "wv")
    out = attention(q, k, v)
    x = x + _adapted(_from_heads, out.reshape(*x.shape[:-1], -1), weights, "wo")
    h = _rms_norm(x, weights["mlp_norm"], config.rms_norm_eps)
    gated = jax.nn.silu(_adapted(linear, h, weights, "w_gate")) * _adapted(linear, h, weights, "w_up")
    return (x + _adapted(linear, gated, weights, "w_down")).astype(dtype), k, v


def _adapted(product, x: jax.Array, weights: Params, name: str) -> jax.Array:
    """The product of x with a weight, and with the low-rank update that stands beside it where the layer has one (`epo_jax.model.lora`)."""
    y = product(x, weights[name])
    if f"{name}_a" not in weights:
        return y
    return y + product(_from_heads(x, weights[f"{name}_a"]), weights[f"{name}_b"])


def _from_heads(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., I], weight [..., O] whose dimensions but the last are I together (heads and head dim) -> [..., O]."""
    return linear(x, weight.reshape(x.shape[-1], weight.shape[-1]))


def _keys_of(cache: jax.Array) -> jax.Array:
    """[B,K,H,C] -> [B,C,K,H], as attention takes it; the compiler cancels it against attention's own transposition."""
    return cache.transpose(0, 3, 1, 2)


def _values_of(cache: jax.Array) -> jax.Array:
    """[B,K,C,H] -> [B,C,K,H]."""
    return cache.transpose(0, 2, 1, 3)


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Zhang and Sennrich 2019 (arXiv:1910.07467), in float32 whatever the dtype of x."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (normed.astype(x.dtype)) * scale.astype(x.dtype)
