"""The programs the engine runs on the device: prefill (many new tokens a row), decode (many steps, one token a row), and copy.

All are jitted with donated caches, work on R rows of the slots over an attended prefix of A cache entries, and
are compiled once for each of the few shapes (R, S, A) that the engine's buckets allow. A Python counter inside
them counts the traces, so a compilation cannot hide.

Shapes: R rows, S new tokens, A attended cache entries, V vocabulary; caches as in cache.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.generate import cache as kv
from epo_jax.generate.sampling import sample
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig

Rows = jax.Array | None  # int32[R]: the slot of each row, or None: row r is slot r


FEW = 4  # so many rows to one may still be busy when a chunk ends early: better to fill the places of the rest again


class Settings(NamedTuple):
    """How each row is sampled: see sampling.py."""

    keys: jax.Array  # uint32[R,2]
    temperature: jax.Array  # float32[R]
    top_k: jax.Array  # int32[R]
    top_p: jax.Array  # float32[R]


@functools.cache
def programs_for(config: LlamaConfig, *, compute_dtype: jnp.dtype, mesh: Mesh | None, slots: int) -> Programs:
    """The programs of these settings: engines for the same model share what is compiled."""
    return Programs(config, compute_dtype=compute_dtype, mesh=mesh, slots=slots)


class DecodeState(NamedTuple):
    """The carry of the decode loop."""

    step: jax.Array  # int32
    tokens: jax.Array  # int32[R]: sampled, not yet in the cache
    positions: jax.Array  # int32[R]: of those tokens
    remaining: jax.Array  # int32[R]: how many tokens the row may still sample; 0 = the row is done
    caches: kv.Caches  # of R rows and A entries
    sampled: jax.Array  # int32[R,steps], -1 where nothing was sampled
    logprobs: jax.Array  # float32[R,steps]


class Programs:
    """prefill(...) and decode(...) for one model configuration; `traces` counts how often any was traced.

    prefill(params, caches, rows, tokens[R,S], start[R], count[R], *, attended)
        puts count[r] new tokens at positions start[r].. of each row's slot (count 0: the row is padding) → caches.
        `attended` is at least every start. A prompt's last token is left to decode, which samples after it: so there is
        one place where logits are made and sampled, and a prefill program is small and quick to compile.
    decode(layers, rest, caches, rows, tokens[R], positions[R], remaining[R], settings, stop_ids[n], *, attended, steps)
        feeds each row's pending token and samples the next, up to `steps` times, leaving early when all rows but a few
        (1 in FEW of those that began) have sampled a stop token or their `remaining` tokens → (sampled int32[R,steps], logprobs float32[R,steps], steps run, caches).
        Every position that is written must lie below `attended`; a padding row has remaining 0 and position -1.
    copy(caches, source, target, *, attended)
        puts the first `attended` entries of slot `source` into slot `target` → caches.
    """

    def __init__(self, config: LlamaConfig, *, compute_dtype: jnp.dtype, mesh: Mesh | None, slots: int) -> None:
        self._config = config
        self._compute_dtype = compute_dtype
        self._mesh = mesh
        self._cache_sharding = kv.cache_sharding(mesh, slots=slots, kv_heads=config.num_kv_heads)
        self.traces = 0
        self.prefill = jax.jit(self._prefill, donate_argnames="caches", static_argnames="attended")
        self.copy = jax.jit(self._copy, donate_argnames="caches", static_argnames="attended")
        self.decode = jax.jit(self._decode, donate_argnames="caches", static_argnames=("attended", "steps"))

    def _prefill(
        self, params: Any, caches: kv.Caches, rows: Rows, tokens: jax.Array, start: jax.Array, count: jax.Array, *, attended: int
    ) -> kv.Caches:
        self.traces += 1
        offsets = jnp.arange(tokens.shape[1])
        positions = jnp.where(offsets < count[:, None], start[:, None] + offsets, -1)
        tokens, positions = self._divide(tokens), self._divide(positions)
        local = self._divide_caches(kv.read(caches, rows, attended))
        keys = jnp.stack([layer[0] for layer in local])
        values = jnp.stack([layer[1] for layer in local])
        _, new_keys, new_values = llama.prefill(params, self._config, tokens, positions, keys, values, compute_dtype=self._compute_dtype)
        new_keys, new_values = jnp.swapaxes(new_keys, 2, 3), jnp.swapaxes(new_values, 2, 3)
        caches = kv.write(caches, rows, positions, list(zip(new_keys, new_values, strict=True)))
        return self._divide_caches(caches)

    def _decode(
        self,
        layers: Any,
        rest: Any,
        caches: kv.Caches,
        rows: Rows,
        tokens: jax.Array,
        positions: jax.Array,
        remaining: jax.Array,
        settings: Settings,
        stop_ids: jax.Array,
        *,
        attended: int,
        steps: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array, kv.Caches]:
        self.traces += 1
        in_place = rows is None and attended == kv.capacity_of(caches)
        local = caches if in_place else self._divide_caches(kv.read(caches, rows, attended))
        number = tokens.shape[0]
        few = jnp.sum(remaining > 0) // FEW

        def body(state: DecodeState) -> DecodeState:
            active = state.remaining > 0
            logits, local = llama.decode_step(
                layers, rest, self._config, self._divide(state.tokens), self._divide(state.positions), state.caches, compute_dtype=self._compute_dtype
            )
            sampled, logprobs = sample(logits, settings.keys, state.positions + 1, settings.temperature, settings.top_k, settings.top_p)
            stopped = jnp.any(sampled[:, None] == stop_ids, axis=1)
            return DecodeState(
                step=state.step + 1,
                tokens=jnp.where(active, sampled, state.tokens),
                positions=state.positions + active,
                remaining=jnp.where(active & ~stopped, state.remaining - 1, 0),
                caches=local,
                sampled=state.sampled.at[:, state.step].set(jnp.where(active, sampled, -1)),
                logprobs=state.logprobs.at[:, state.step].set(logprobs),
            )

        end = jax.lax.while_loop(
            lambda state: (state.step < steps) & (jnp.sum(state.remaining > 0) > few),
            body,
            DecodeState(
                step=jnp.int32(0),
                tokens=tokens,
                positions=positions,
                remaining=remaining,
                caches=local,
                sampled=jnp.full((number, steps), -1, jnp.int32),
                logprobs=jnp.zeros((number, steps), jnp.float32),
            ),
        )
        if in_place:
            caches = end.caches
        else:  # only what was fed goes back, so a slot that was read along but not played stays as it was
            fed = positions[:, None] + jnp.arange(steps)
            new = kv.entries(end.caches, jnp.minimum(fed, attended - 1))
            caches = kv.write(caches, rows, jnp.where(fed < end.positions[:, None], fed, -1), new)
        return end.sampled, end.logprobs, end.step, self._divide_caches(caches)

    def _copy(self, caches: kv.Caches, source: jax.Array, target: jax.Array, *, attended: int) -> kv.Caches:
        self.traces += 1
        return self._divide_caches(kv.copy(caches, source, target, attended))

    def _divide(self, array: jax.Array) -> jax.Array:
        """Rows over the mesh's batch axes."""
        sharding = kv.row_sharding(self._mesh)
        return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)

    def _divide_caches(self, caches: kv.Caches) -> kv.Caches:
        if self._cache_sharding is None:
            return caches
        return [(jax.lax.with_sharding_constraint(k, self._cache_sharding), jax.lax.with_sharding_constraint(v, self._cache_sharding)) for k, v in caches]
