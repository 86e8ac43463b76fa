"""Playing with fewer bits: the samples' log-probabilities are those of the weights that were really read."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from epo_jax.errors import UserError
from epo_jax.generate import play_weights
from epo_jax.generate.engine import Sampling
from epo_jax.model.dense import of_integers
from tests.generate.small_engine import converse_all, make_engine, make_params, rescore, small_buckets  # noqa: F401


def gaps(weights: str, truth: dict) -> np.ndarray:
    """|log π sampled with − log π of `truth`| for each sampled token."""
    with make_engine(weights=weights) as engine:
        conversations = asyncio.run(converse_all(engine, range(4), turns=2, longest=8, sampling=Sampling(max_new_tokens=6)))
    found = []
    for session, heard in conversations:
        for begin, sampled in heard:
            found.append(np.abs(np.asarray(sampled.logprobs) - rescore(truth, session.tokens, begin, begin + len(sampled.tokens))))
    return np.concatenate(found)


def by_hand(array: jax.Array, axes: tuple[int, ...]) -> np.ndarray:
    """Rounded to 127 steps of the largest magnitude along the axes."""
    step = np.abs(np.asarray(array)).max(axis=axes, keepdims=True) / 127
    return np.round(np.asarray(array) / step) * step


def test_int8_samples_from_the_rounded_weights() -> None:
    params = make_params()
    contracted = {"wq": (1,), "wk": (1,), "wv": (1,), "wo": (1, 2), "w_gate": (1,), "w_up": (1,), "w_down": (1,)}
    found = play_weights.prepare(params, "int8")["layers"]
    for name, axes in contracted.items():
        assert found[name].qvalue.dtype == jnp.int8
        array = params["layers"][name]
        np.testing.assert_allclose(qwix.dequantize(found[name]), by_hand(array, axes), atol=float(jnp.abs(array).max()) / 100)
        assert np.prod(found[name].scale.shape) * np.prod([found[name].shape[axis] for axis in axes]) == found[name].qvalue.size
    truth = {**params, "layers": {name: qwix.dequantize(one) if name in contracted else one for name, one in found.items()}}
    _, rest = play_weights.for_decoding(params, "int8", one_device=True)
    np.testing.assert_allclose(qwix.dequantize(rest["head"]), by_hand(params["head"], (0,)), atol=float(jnp.abs(params["head"]).max()) / 100)
    truth["head"] = qwix.dequantize(rest["head"])
    assert gaps("int8", truth).max() < 1e-3
    assert 1e-4 < gaps("int8", params).mean() < 0.05  # what the learner measures as logprob_gap


def test_integers_multiply_as_the_rounded_weights_do() -> None:
    """A row with one entry a thousand times as large as the others, as a transformer's activations have, keeps the others; and a row of zeros."""
    x = np.random.default_rng(0).standard_normal((3, 1, 64)).astype(np.float32)
    x[1, 0, 5], x[2] = 1000.0, 0.0
    weight = qwix.quantize(jax.random.normal(jax.random.key(1), (64, 48)), jnp.int8, channelwise_axes=[1])
    found = np.asarray(of_integers(jnp.asarray(x), weight))
    wanted = x.astype(np.float64) @ np.asarray(qwix.dequantize(weight), np.float64)
    step = np.abs(x).max(axis=-1, keepdims=True) / (127 * 256)  # of the digits; each of the 64 entries is off by half of one at most
    assert (np.abs(found - wanted) <= step / 2 * np.abs(qwix.dequantize(weight)).sum(axis=0) + 1e-5 * np.abs(wanted)).all()
    assert (found[2] == 0).all()


def test_bfloat16_computes_in_bfloat16() -> None:
    assert 1e-4 < gaps("bfloat16", make_params()).mean() < 0.1
    assert gaps("compute", make_params()).max() < 1e-4


def test_new_weights_are_rounded_anew_and_an_unknown_kind_is_refused() -> None:
    prompt, sampling = list(range(10, 20)), Sampling(temperature=0.0, max_new_tokens=6)
    with make_engine(weights="int8") as engine, make_engine(weights="int8", params=make_params(4)) as other:
        (expected,) = other.generate_batch([prompt], sampling, [0])
        engine.update_weights(make_params(4), "later")
        compilations = other.stats["compilations"]
        (found,) = engine.generate_batch([prompt], sampling, [0])
        assert (found.tokens, found.weights_version) == (expected.tokens, "later") and expected.weights_version == "0"
        assert other.stats["compilations"] == compilations
    with pytest.raises(UserError, match="compute, bfloat16, int8"):
        make_engine(weights="int4")
