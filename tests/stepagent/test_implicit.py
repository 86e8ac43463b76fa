"""The loss of pairs by hand in float64, what it leaves alone, and the rows that it reads."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.batch import UNKNOWN_LOGPROB, ComparedBatch
from epo_jax.learn.losses import said, trajectories_in
from epo_jax.stepagent import implicit
from epo_jax.stepagent.inspection import Pair

PAIRS = [
    Pair("test", "a", state=[1, 2, 3], expert=[4, 5], policy=[6], logprobs=[-1.5], differ=True),
    Pair("test", "b", state=[7], expert=[8], policy=[9, 10, 11], logprobs=[-1.0, -2.0, -3.0], differ=True),
]


def made(rows: int = 3):
    (batch,) = implicit.batches(PAIRS, rows=rows, accumulation=1, lengths=(4, 6), pad_id=0)
    return batch


def test_a_pair_is_a_row_of_two_segments() -> None:
    batch = made()
    assert batch.tokens.shape == (1, 3, 12)  # 9 tokens are more than 2 * 4
    assert batch.tokens[0, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 6, 0, 0, 0]
    assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]
    assert batch.segment_ids[0, 1].tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert batch.loss_weights[0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, -1, 0, 0, 0]
    assert batch.behavior_logprobs[0, 0, [3, 4, 8]].tolist() == [UNKNOWN_LOGPROB, UNKNOWN_LOGPROB, -1.5]
    assert batch.turn_ids[0, 1].tolist() == [0, 1, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert trajectories_in(batch)[0].tolist() == [2, 2, 0]


def compared() -> tuple[ComparedBatch, np.ndarray, np.ndarray]:
    """[3,12] with random log-probabilities, and whether a token was said."""
    batch, random = jax.tree.map(lambda array: array[0], made()), np.random.default_rng(0)
    here = np.asarray(said(jax.tree.map(jnp.asarray, batch)))
    logprobs, reference = (np.where(here, -random.uniform(0.1, 3.0, here.shape), 0.0) for _ in range(2))
    return ComparedBatch(*batch, reference_logprobs=reference.astype(np.float32)), logprobs, here


@pytest.mark.parametrize("clone_weight", [0.0, 0.5])
def test_the_loss_by_hand(clone_weight: float) -> None:
    batch, logprobs, here = compared()
    gain = logprobs - batch.reference_logprobs
    margins = [gain[0, [3, 4]].sum() - gain[0, 8], gain[1, 1] - gain[1, [3, 4, 5]].sum()]
    expected = sum(np.log1p(np.exp(-0.3 * margin)) for margin in margins)
    expected -= clone_weight * (logprobs[0, [3, 4]].mean() + logprobs[1, 1])
    loss = functools.partial(implicit.preference_loss, beta=0.3, clone_weight=clone_weight)
    value, gradient = jax.value_and_grad(lambda x: loss(batch, x, jnp.zeros(x.shape)))(jnp.asarray(logprobs, jnp.float32))
    np.testing.assert_allclose(value, 2 * expected, rtol=1e-5)
    if not clone_weight:
        slope = 0.3 / (1 + np.exp(0.3 * np.array(margins)))  # β σ(-β margin)
        np.testing.assert_allclose(gradient[0, [3, 4, 8]], 2 * slope[0] * np.array([-1, -1, 1]), rtol=1e-5)
        np.testing.assert_allclose(gradient[1, [1, 3, 4, 5]], 2 * slope[1] * np.array([-1, 1, 1, 1]), rtol=1e-5)
    assert not np.asarray(gradient)[~here].any()


def test_at_the_reference_every_pair_costs_log_two_and_an_empty_row_nothing() -> None:
    batch, _, _ = compared()
    value = implicit.preference_loss(batch, jnp.asarray(batch.reference_logprobs), jnp.zeros((3, 12)), beta=0.1)
    np.testing.assert_allclose(value, 2 * 2 * np.log(2.0), rtol=1e-6)


def test_equal_actions_have_no_gradient_on_the_policy() -> None:
    """Both segments say the same: what raises the one lowers the other, so such pairs can be left out."""
    same = Pair("test", "c", state=[1, 2], expert=[3, 4], policy=[3, 4], logprobs=[-1.0, -1.0], differ=False)
    (batch,) = implicit.batches([same], rows=1, accumulation=1, lengths=(4,), pad_id=0)
    batch = jax.tree.map(lambda array: array[0], batch)
    reference = np.where(batch.loss_weights != 0, -1.0, 0.0).astype(np.float32)

    def loss(score: jax.Array) -> jax.Array:
        """`score` [2]: log-probabilities of the two tokens, alike in both segments."""
        logprobs = jnp.zeros((1, 8)).at[0, jnp.array([2, 3, 6, 7])].set(jnp.concatenate([score, score]))
        return implicit.preference_loss(ComparedBatch(*batch, reference_logprobs=reference), logprobs, jnp.zeros((1, 8)), beta=0.5)

    np.testing.assert_allclose(jax.grad(loss)(jnp.array([-2.0, -0.5])), 0.0, atol=1e-7)
