"""Attention of rows whose tokens are split over the mesh's axis `sequence`, as stretches (`epo_jax.model.stretches`).

Every device has the queries, keys and values of its own stretch, an early and a late chunk of the row, and gathers the keys and values of whole
rows (as Llama 3 was trained, Grattafiori et al. 2024, section 3.3.2). Of another device j it computes two products of chunks: its late queries
against the early keys of j; and either its early queries against them too (j < own), or its late queries against the late keys of j (j > own). So
what causality excludes is not computed, every device has as much to do, and nothing but a tile of scores is ever held: softmax goes on from tile
to tile (Milakov and Gimelshein 2018, arXiv:1805.02867), in float32, and the backward pass computes the scores again from the normalisers (Dao et
al. 2022, arXiv:2205.14135). docs/scaling.md says how this compares with a ring.

Shapes: B rows, T' tokens of a padded row in the order of the stretches, and on one device b rows, c tokens in a chunk, N query heads,
K key/value heads, G = N / K, H head dim, S devices.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.mesh import spec
from epo_jax.model.stretches import tiles_in

AXIS = "sequence"
MASKED = -1e30  # a score that counts for nothing


class Queries(NamedTuple):
    """q [b,K,G,c,H], scaled; positions and segment ids int32 [b,c]. For the backward pass also out_grad like q, normaliser and pull [b,K,G,c,1]."""

    q: jax.Array
    positions: jax.Array
    segments: jax.Array
    out_grad: jax.Array | None = None
    normaliser: jax.Array | None = None  # log of the sum of exponentials
    pull: jax.Array | None = None  # sum over H of out_grad * out


class Keys(NamedTuple):
    """k, v [b,K,c,H]; positions and segment ids int32 [b,c]."""

    k: jax.Array
    v: jax.Array
    positions: jax.Array
    segments: jax.Array


class Softmax(NamedTuple):
    """As far as it has come, float32: the largest score and the sum of exponentials [b,K,G,c,1], the weighted sum of values [b,K,G,c,H]."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    positions: jax.Array,
    segment_ids: jax.Array,
    sliding_window: int | None,
    mesh: Mesh,
) -> jax.Array:
    """q [B,T',N,H], k and v [B,T',K,H], positions and segment ids int32 [B,T'], all in the order of the stretches -> [B,T',N,H] in q's dtype.

    The rule is that of `epo_jax.model.attention`, for rows in which no token sees one of a later place. A query that sees nothing gives zeros.
    """
    return _attend(q, k, v, positions, segment_ids, sliding_window, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, positions, segments, window, mesh):
    return _forward(q, k, v, positions, segments, window, mesh)[0]


def _forward(q, k, v, positions, segments, window, mesh):
    queries, keys, ids, scalars = _specs()
    local = functools.partial(_forward_on_a_device, window=window, ways=mesh.shape[AXIS])
    # check_vma: every output differs over every axis, and nothing is differentiated through.
    run = jax.shard_map(local, mesh=mesh, in_specs=(queries, keys, keys, ids, ids), out_specs=(queries, scalars), check_vma=False)
    out, normaliser = run(q, k, v, positions, segments)
    return out, (q, k, v, positions, segments, out, normaliser)


def _backward(window, mesh, saved, out_grad):
    queries, keys, ids, scalars = _specs()
    local = functools.partial(_backward_on_a_device, window=window, ways=mesh.shape[AXIS])
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(queries, keys, keys, ids, ids, queries, scalars, queries), out_specs=(queries, keys, keys), check_vma=False
    )
    return *run(*saved, out_grad.astype(saved[0].dtype)), None, None


_attend.defvjp(_forward, _backward)


def _specs():
    """Of queries, of keys and values, of what each device has of whole rows, and of one number for each query and head [B,K,G,T',1]."""
    scalars = spec("batch", "kv_heads", "head_dim", "length", "head_dim")
    return spec("batch", "length", "heads", "head_dim"), spec("batch", "length", "kv_heads", "head_dim"), spec("batch"), scalars


# --- on one device ------------------------------------------------------------------------------------------------------------------------


def _forward_on_a_device(q, k, v, positions, segments, *, window, ways):
    own = jax.lax.axis_index(AXIS)
    q, everyones = _grouped(_scaled(q), k.shape[2]), jax.lax.all_gather((_heads_first(k), _heads_first(v)), AXIS)
    early, late = _halves(Queries(q, *_ids_of(own, positions, segments, q.shape[3])))
    nothing = Softmax(jnp.full((*early.q.shape[:-1], 1), MASKED), jnp.zeros((*early.q.shape[:-1], 1)), jnp.zeros(early.q.shape))
    first, second = _keys_of(own, everyones, positions, segments)
    on_early = _see(nothing, early, first, window)
    on_late = _see(_see(nothing, late, first, window), late, second, window)

    def further(distance: jax.Array, states: tuple[Softmax, Softmax]) -> tuple[Softmax, Softmax]:
        on_early, on_late = states
        other = (own - distance) % ways
        before, (first, second) = other < own, _keys_of(other, everyones, positions, segments)
        on_late = _see(on_late, late, first, window)
        seen = _see(_either(before, on_early, on_late), _either(before, early, late), _either(before, first, second), window)
        return _either(before, seen, on_early), _either(before, on_late, seen)

    state = _whole(*jax.lax.fori_loop(1, ways, further, (on_early, on_late)))
    seen = state.total > 0
    out = jnp.where(seen, state.out / jnp.where(seen, state.total, 1.0), 0.0)
    normaliser = jnp.where(seen, state.top + jnp.log(jnp.where(seen, state.total, 1.0)), 0.0)
    return _ungrouped(out).astype(v.dtype), normaliser


def _backward_on_a_device(q, k, v, positions, segments, out, normaliser, out_grad, *, window, ways):
    own, kv_heads = jax.lax.axis_index(AXIS), k.shape[2]
    pull = _grouped(jnp.sum(out_grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True), kv_heads)
    scaled, everyones = _grouped(_scaled(q), kv_heads), jax.lax.all_gather((_heads_first(k), _heads_first(v)), AXIS)
    early, late = _halves(Queries(scaled, *_ids_of(own, positions, segments, scaled.shape[3]), _grouped(out_grad, kv_heads), normaliser, pull))

    def put(sums: Any, device: jax.Array, found: Any) -> Any:
        return jax.tree.map(lambda total, x: jax.lax.dynamic_update_index_in_dim(total, x, device, 0), sums, found)

    first, second = _keys_of(own, everyones, positions, segments)
    early_grad, first_grad = _gradients(early, first, window)
    late_grad, more_first = _gradients(late, first, window)
    more, second_grad = _gradients(late, second, window)
    found = _whole(jax.tree.map(jnp.add, first_grad, more_first), second_grad)
    sums = put(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), everyones), own, found)

    def further(distance: jax.Array, carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        early_grad, late_grad, sums = carry
        other = (own - distance) % ways
        before, (first, second) = other < own, _keys_of(other, everyones, positions, segments)
        of_late, first_grad = _gradients(late, first, window)
        more, either_grad = _gradients(_either(before, early, late), _either(before, first, second), window)
        first_grad = jax.tree.map(lambda total, x: total + jnp.where(before, x, 0.0), first_grad, either_grad)
        second_grad = jax.tree.map(lambda x: jnp.where(before, 0.0, x), either_grad)
        early_grad, late_grad = early_grad + jnp.where(before, more, 0.0), late_grad + of_late + jnp.where(before, 0.0, more)
        return early_grad, late_grad, put(sums, other, _whole(first_grad, second_grad))

    early_grad, late_grad, sums = jax.lax.fori_loop(1, ways, further, (early_grad, late_grad + more, sums))
    k_grad, v_grad = (_heads_last(x) for x in jax.lax.psum_scatter(sums, AXIS))
    q_grad = _ungrouped(_whole(early_grad, late_grad)) * (1.0 / math.sqrt(q.shape[-1]))
    return q_grad.astype(q.dtype), k_grad.astype(k.dtype), v_grad.astype(v.dtype)


def _keys_of(device: jax.Array, everyones: tuple[jax.Array, jax.Array], positions: jax.Array, segments: jax.Array) -> tuple[Keys, Keys]:
    """The early and the late keys of a device, of those of all [S,b,K,2c,H]."""
    k, v = (jax.lax.dynamic_index_in_dim(x, device, keepdims=False) for x in everyones)
    return _halves(Keys(k, v, *_ids_of(device, positions, segments, k.shape[2])))


# --- chunks and tiles ---------------------------------------------------------------------------------------------------------------------


def _see(state: Softmax, queries: Queries, keys: Keys, window: int | None) -> Softmax:
    """The softmax of a chunk of queries, gone on over a chunk of keys."""
    if tiles_in(keys.k.shape[2]) == 1:
        return _see_tile(state, queries, keys, window)
    tiles = _cut(keys)

    def one(both: tuple[Softmax, Queries]) -> Softmax:
        state, queries = both
        return jax.lax.scan(lambda state, keys: (_see_tile(state, queries, keys, window), None), state, tiles)[0]

    return _joined(jax.lax.map(one, (_cut(state), _cut(queries))))


def _gradients(queries: Queries, keys: Keys, window: int | None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """What a chunk of queries, seeing a chunk of keys, contributes to the gradients of q (before its scale), k and v; float32."""
    if tiles_in(keys.k.shape[2]) == 1:
        return _gradients_of_tile(queries, keys, window)
    tiles = _cut(keys)
    nothing = tuple(jnp.zeros(x.shape, jnp.float32) for x in (tiles.k, tiles.v))

    def one(sums: Any, queries: Queries) -> tuple[Any, jax.Array]:
        def against(q_grad: jax.Array, piece: tuple[Keys, Any]) -> tuple[jax.Array, Any]:
            keys, sums = piece
            more, found = _gradients_of_tile(queries, keys, window)
            return q_grad + more, jax.tree.map(jnp.add, sums, found)

        q_grad, sums = jax.lax.scan(against, jnp.zeros(queries.q.shape, jnp.float32), (tiles, sums))
        return sums, q_grad

    sums, q_grad = jax.lax.scan(one, nothing, _cut(queries))
    return _joined(q_grad), _joined(sums)


def _see_tile(state: Softmax, queries: Queries, keys: Keys, window: int | None) -> Softmax:
    scores = _scores(queries, keys, window)
    top = jnp.maximum(state.top, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.maximum(top, MASKED / 2))  # 0 where nothing is seen, of which `top` is MASKED itself
    fade = jnp.exp(state.top - top)
    return Softmax(
        top,
        fade * state.total + jnp.sum(weights, axis=-1, keepdims=True),
        fade * state.out + _against_keys(weights.astype(keys.v.dtype), keys.v),
    )


def _gradients_of_tile(queries: Queries, keys: Keys, window: int | None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    weights = jnp.exp(_scores(queries, keys, window) - queries.normaliser)
    weight_grad = _against_keys(queries.out_grad, keys.v.swapaxes(2, 3))
    score_grad = (weights * (weight_grad - queries.pull)).astype(keys.k.dtype)
    return _against_keys(score_grad, keys.k), (_over_queries(score_grad, queries.q), _over_queries(weights.astype(keys.v.dtype), queries.out_grad))


def _scores(queries: Queries, keys: Keys, window: int | None) -> jax.Array:
    """[b,K,G,t,s] float32, MASKED where the rule of `epo_jax.model.attention.visible` lets nothing be seen."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    mask = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (queries.segments[:, :, None] != 0) & (distance >= 0)
    mask = mask if window is None else mask & (distance < window)
    return jnp.where(mask[:, None, None], _against_keys(queries.q, keys.k.swapaxes(2, 3)), MASKED)


def _against_keys(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [b,K,G,t,I], y [b,K,I,O] -> [b,K,G,t,O] float32, as products of matrices with all G * t queries of a head."""
    b, heads, groups, t, inner = x.shape
    out = jnp.matmul(x.reshape(b, heads, groups * t, inner), y, preferred_element_type=jnp.float32)
    return out.reshape(b, heads, groups, t, y.shape[-1])


def _over_queries(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [b,K,G,t,I], y [b,K,G,t,O] -> [b,K,I,O] float32, summed over the queries of a head."""
    x, y = (z.reshape(*z.shape[:2], -1, z.shape[-1]) for z in (x, y))
    return jnp.matmul(x.swapaxes(2, 3), y, preferred_element_type=jnp.float32)


# --- shapes -------------------------------------------------------------------------------------------------------------------------------


def _scaled(q: jax.Array) -> jax.Array:
    return q * (1.0 / math.sqrt(q.shape[-1]))


def _grouped(x: jax.Array, kv_heads: int) -> jax.Array:
    """[b,2c,N,H] -> [b,K,G,2c,H]."""
    b, tokens, heads, head_dim = x.shape
    return x.reshape(b, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _ungrouped(x: jax.Array) -> jax.Array:
    """[b,K,G,2c,H] -> [b,2c,N,H]."""
    b, kv_heads, groups, tokens, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(b, tokens, kv_heads * groups, head_dim)


def _heads_first(x: jax.Array) -> jax.Array:
    """[b,2c,K,H] -> [b,K,2c,H]."""
    return x.transpose(0, 2, 1, 3)


_heads_last = _heads_first  # its own inverse


def _ids_of(device: jax.Array, positions: jax.Array, segments: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Positions and segment ids of a device's stretch [b,2c], of those of whole rows [b,T']."""
    return tuple(jax.lax.dynamic_slice_in_dim(x, device * tokens, tokens, axis=1) for x in (positions, segments))


def _tokens_axis(x: jax.Array) -> int:
    """Of [b,c], [b,K,c,H] and [b,K,G,c,H]."""
    return max(1, x.ndim - 2)


def _halves(tree: Any) -> tuple[Any, Any]:
    """Early and late chunk of a stretch."""
    early, late = (jax.tree.map(lambda x, which=which: jnp.split(x, 2, axis=_tokens_axis(x))[which], tree) for which in (0, 1))
    return early, late


def _whole(early: Any, late: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=_tokens_axis(a)), early, late)


def _either(first: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), a, b)


def _cut(tree: Any) -> Any:
    """Every array of a chunk in tiles, which come first."""

    def cut(x: jax.Array) -> jax.Array:
        axis = _tokens_axis(x)
        tiles = tiles_in(x.shape[axis])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], tiles, x.shape[axis] // tiles, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(cut, tree)


def _joined(tree: Any) -> Any:
    """The inverse of `_cut`."""

    def join(x: jax.Array) -> jax.Array:
        axis = _tokens_axis(x[0])
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(join, tree)
