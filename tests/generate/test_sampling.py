"""Sampling against hand calculation in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.generate.sampling import Sampling, filter_logits, key_words, sample

LOGITS = np.log(np.array([0.40, 0.25, 0.15, 0.10, 0.06, 0.04], np.float32))


def arrays(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.full(rows, temperature, jnp.float32), jnp.full(rows, top_k, jnp.int32), jnp.full(rows, top_p, jnp.float32)


def filtered_by_hand(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, top-k, top-p, one token at a time."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    order = np.argsort(-probabilities, kind="stable")
    kept = list(order[: top_k or len(order)])
    total = probabilities[kept].sum()
    nucleus, held = [], 0.0
    for token in kept:
        if nucleus and held >= top_p:
            break
        nucleus.append(token)
        held += probabilities[token] / total
    result = np.zeros_like(probabilities)
    result[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return result


@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (2.0, 4, 0.8), (1.0, 0, 0.01), (1.0, 99, 1.0)])
def test_filtered_distribution_equals_hand_calculation(temperature: float, top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(0)
    logits = np.stack([LOGITS, rng.permutation(LOGITS), rng.normal(size=6).astype(np.float32) * 3])
    ours = jax.nn.softmax(filter_logits(jnp.asarray(logits), *arrays(3, temperature, top_k, top_p)), axis=-1)
    for row in range(3):
        np.testing.assert_allclose(ours[row], filtered_by_hand(logits[row], temperature, top_k, top_p), atol=1e-6)


def test_each_row_has_its_own_settings() -> None:
    logits = jnp.asarray(np.tile(LOGITS, (3, 1)))
    ours = filter_logits(logits, jnp.array([1.0, 0.5, 1.0]), jnp.array([0, 2, 0]), jnp.array([1.0, 1.0, 0.6]))
    assert np.isfinite(ours).sum(axis=1).tolist() == [6, 2, 2]
    np.testing.assert_allclose(ours[1, 0] - ours[1, 1], 2 * (LOGITS[0] - LOGITS[1]), rtol=1e-5)


@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (0.7, 4, 0.9)])
def test_samples_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    number = 20_000
    keys = jnp.tile(jnp.asarray(key_words(7)), (number, 1))
    logits = jnp.tile(jnp.asarray(LOGITS), (number, 1))
    tokens, _ = jax.jit(sample)(logits, keys, jnp.arange(number), *arrays(number, temperature, top_k, top_p))
    expected = filtered_by_hand(LOGITS, temperature, top_k, top_p)
    shares = np.bincount(np.asarray(tokens), minlength=6) / number
    assert shares[expected == 0].sum() == 0
    # five standard deviations of a binomial share
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / number) + 1e-9).all()


def test_logprob_is_of_the_unmodified_distribution_in_float32() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 6)).astype(np.float32) * 4
    keys = np.stack([key_words(seed) for seed in range(50)])
    tokens, logprobs = sample(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(keys), jnp.zeros(50, jnp.int32), *arrays(50, 0.3, 3, 0.8))
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64)
    by_hand = rounded - np.log(np.exp(rounded).sum(axis=1, keepdims=True))
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, by_hand[np.arange(50), np.asarray(tokens)], atol=1e-5)


def test_temperature_zero_is_greedy() -> None:
    logits = np.random.default_rng(2).normal(size=(20, 30)).astype(np.float32)
    keys = np.stack([key_words(seed) for seed in range(20)])
    tokens, _ = sample(jnp.asarray(logits), jnp.asarray(keys), jnp.arange(20), *arrays(20, 0.0))
    assert np.asarray(tokens).tolist() == logits.argmax(axis=1).tolist()


def test_a_row_depends_on_its_own_key_and_position_only() -> None:
    logits = np.zeros((4, 1000), np.float32)
    keys = np.stack([key_words(3), key_words(4), key_words(3), key_words(3)])
    positions = jnp.array([10, 10, 10, 11])
    tokens, _ = sample(jnp.asarray(logits), jnp.asarray(keys), positions, *arrays(4))
    alone, _ = sample(jnp.asarray(logits[:1]), jnp.asarray(keys[:1]), positions[:1], *arrays(1))
    by_hand = jax.random.categorical(jax.random.fold_in(jax.random.key(3, impl="threefry2x32"), 10), jnp.zeros(1000))
    assert tokens[0] == tokens[2] == alone[0] == by_hand
    assert tokens[0] != tokens[1] and tokens[0] != tokens[3]


def test_a_key_is_as_good_as_its_seed() -> None:
    assert key_words(5).tolist() == key_words(jax.random.key(5, impl="threefry2x32")).tolist() == key_words(jax.random.PRNGKey(5)).tolist()
    with pytest.raises(UserError, match="key"):
        key_words(np.zeros(3, np.uint32))


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
