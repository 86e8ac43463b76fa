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
from tests.generate.test_engine import converse_all, make_engine, make_params, rescore, small_buckets  # noqa: F401


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
    assert gaps("int8", truth).max() < 1e-4
    assert 1e-4 < gaps("int8", params).mean() < 0.05  # what the learner measures as logprob_gap


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
