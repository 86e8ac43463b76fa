"""From logits to a token: temperature, top-k, top-p, and a random key for every sequence and position.

Everything here is a pure function over a batch of rows, and a row's result depends on that row alone: its logits,
its key, its position, its settings. So what a sequence samples does not depend on what shares its batch.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.errors import UserError

KEY_IMPLEMENTATION = "threefry2x32"  # named, so that a platform's default generator does not change what is sampled


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one strategy is sampled.

    temperature: 0 takes the most probable token; 1 the model's own distribution.
    top_k: only the k most probable tokens; 0 is no limit.
    top_p: only the fewest most probable tokens that hold this probability together; 1 is no limit.
    max_new_tokens: at most this many tokens, a stop token included.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: give 0 (no limit) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: give a number above 0 and at most 1 (no limit)")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one call sampled.

    tokens: the sampled token ids, the stop token included where one was sampled.
    logprobs: log π of each under the *unmodified* distribution (temperature 1, no limits), float32.
    stop_reason: "stop" (a stop token was sampled) or "length" (max_new_tokens, or the cache is full).
    weights_version: of the weights that sampled them, as the engine was told; "" where it was no engine.
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    weights_version: str = ""


def key_words(seed: int | jax.Array | np.ndarray) -> np.ndarray:
    """A seed or a JAX key (typed, or its raw words) as uint32[2], the form in which the engine keeps session keys."""
    if isinstance(seed, (int, np.integer)):
        seed = jax.random.key(int(seed), impl=KEY_IMPLEMENTATION)
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        seed = jax.random.key_data(seed)
    words = np.asarray(seed)
    if words.shape != (2,) or words.dtype != np.uint32:
        raise UserError(f"a session's key is {words.dtype}{list(words.shape)}: give an integer seed or one {KEY_IMPLEMENTATION} key")
    return words


def scale(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """logits[B,V] / temperature[B]; rows of temperature 0 (greedy, their noise is never used) stay as they are."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]


def limit(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """logits[B,V] with -inf on every token outside the row's top_k[B] and, of what is left, outside its top_p[B].

    Top-p counts the probabilities renormalised within top-k (the order and the meaning of transformers' warpers).
    Tokens that tie with the last one kept are kept too, so the result does not depend on the order of a sort.
    """
    vocabulary = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    kept = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
    lowest = jnp.take_along_axis(ordered, kept[:, None] - 1, axis=-1)  # [B,1]
    probabilities = jax.nn.softmax(jnp.where(ordered >= lowest, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # probability held by the more probable tokens
    nucleus = jnp.sum(before < top_p[:, None], axis=-1, keepdims=True)  # at least 1: nothing comes before the first
    nucleus = jnp.where(top_p[:, None] < 1, jnp.maximum(nucleus, 1), vocabulary)
    lowest = jnp.maximum(lowest, jnp.take_along_axis(ordered, nucleus - 1, axis=-1))
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def filter_logits(logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """The logits[B,V] that are sampled from: scaled by temperature[B], then limited. The sort runs only when some row limits."""
    scaled = scale(logits, temperature)
    some_limit = jnp.any((top_k > 0) | (top_p < 1))
    return jax.lax.cond(some_limit, limit, lambda scaled, _k, _p: scaled, scaled, top_k, top_p)


def gumbel(keys: jax.Array, positions: jax.Array, vocabulary: int) -> jax.Array:
    """Standard Gumbel noise [B,V]: row b from the key fold_in(keys[b], positions[b]); keys are uint32[B,2] words."""

    def one(words: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(words, impl=KEY_IMPLEMENTATION), position)
        return jax.random.gumbel(key, (vocabulary,), jnp.float32)

    return jax.vmap(one)(keys, positions)


def sample(
    logits: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row: logits[B,V] → (tokens int32[B], log-probabilities float32[B] under softmax(logits) itself).

    positions[B]: where in its sequence the sampled token will stand; with keys uint32[B,2] it fixes the noise.
    Sampling is the Gumbel-max rule: argmax(filtered logits + noise) is distributed as their softmax.
    """
    logits = logits.astype(jnp.float32)

    def drawn() -> jax.Array:
        noisy = filter_logits(logits, temperature, top_k, top_p) + gumbel(keys, positions, logits.shape[-1])
        return jnp.argmax(jnp.where(temperature[:, None] > 0, noisy, logits), axis=-1)

    tokens = jax.lax.cond(jnp.any(temperature > 0), drawn, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
