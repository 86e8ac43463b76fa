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
from epo_jax.trajectory import Trajectory, Turn


def trajectory(name: str, *states: tuple[list[int], list[int], list[int]]) -> Trajectory:
    """states: (tokens read, the expert's action, the policy's) one after another."""
    text = lambda tokens: " ".join(map(str, tokens))  # noqa: E731
    turns = [Turn(prompt_tokens=read, tokens=expert, strategy=text(expert)) for read, expert, _ in states]
    found = [{"tokens": policy, "logprobs": [-1.5] * len(policy), "text": text(policy)} for *_, policy in states]
    return Trajectory("test", name, turns=turns, extra={"inspected": found})


# Of three states the two actions differ at the first and the last.
LONG = trajectory("a", ([1, 2, 3], [4, 5], [6]), ([7], [8], [8]), ([9], [10], [11, 12]))
SHORT = trajectory("b", ([7], [8], [9, 10, 11]))


def made(rows: int = 3):
    (batch,) = implicit.batches([SHORT, LONG], rows=rows, accumulation=1, lengths=(4, 17), pad_id=0)
    return batch


def test_a_trajectory_is_a_row() -> None:
    batch = made()
    assert batch.tokens.shape == (1, 3, 17)
    assert batch.tokens[0, 0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 3, 6, 7, 8, 9, 11, 12, 0]
    assert batch.turn_ids[0, 0].tolist() == [0, 0, 0, 1, 1, 0, 2, 0, 3, 0, 1, 0, 2, 0, 3, 3, 0]
    assert batch.loss_weights[0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 0, -1, 0, 0, 0, -1, -1, 0]
    assert batch.behavior_logprobs[0, 0, [3, 4, 10]].tolist() == [UNKNOWN_LOGPROB, UNKNOWN_LOGPROB, -1.5]
    assert batch.tokens[0, 1, :6].tolist() == [7, 8, 7, 9, 10, 11] and batch.segment_ids[0, 1].sum() == 6
    assert trajectories_in(batch)[0].tolist() == [1, 1, 0]


def compared() -> tuple[ComparedBatch, np.ndarray, np.ndarray]:
    """[3,17] with random log-probabilities, and whether a token was said."""
    batch, random = jax.tree.map(lambda array: array[0], made()), np.random.default_rng(0)
    here = np.asarray(said(jax.tree.map(jnp.asarray, batch)))
    logprobs, reference = (np.where(here, -random.uniform(0.1, 3.0, here.shape), 0.0) for _ in range(2))
    return ComparedBatch(**batch._asdict(), reference_logprobs=reference.astype(np.float32)), logprobs, here


@pytest.mark.parametrize("clone_weight", [0.0, 0.5])
def test_the_loss_by_hand(clone_weight: float) -> None:
    batch, logprobs, here = compared()
    gain = logprobs - batch.reference_logprobs
    first, last, other = gain[0, 3] + gain[0, 4] - gain[0, 10], gain[0, 8] - gain[0, 14] - gain[0, 15], gain[1, 1] - gain[1, 3:6].sum()
    cost = lambda margin: np.log1p(np.exp(-0.3 * margin))  # noqa: E731
    expected = (cost(first) + np.log(2.0) + cost(last)) / 3 + cost(other)  # where both say the same, the margin is 0
    expected -= clone_weight * ((logprobs[0, [3, 4]].mean() + logprobs[0, 6] + logprobs[0, 8]) / 3 + logprobs[1, 1])
    loss = functools.partial(implicit.preference_loss, beta=0.3, clone_weight=clone_weight)
    value, gradient = jax.value_and_grad(lambda x: loss(batch, x, jnp.zeros(x.shape)))(jnp.asarray(logprobs, jnp.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if not clone_weight:
        slope = lambda margin: 0.3 / (1 + np.exp(0.3 * margin))  # noqa: E731  β σ(-β margin)
        np.testing.assert_allclose(gradient[0, [3, 4, 10]], slope(first) / 3 * np.array([-1, -1, 1]), rtol=1e-5)
        np.testing.assert_allclose(gradient[0, [8, 14, 15]], slope(last) / 3 * np.array([-1, 1, 1]), rtol=1e-5)
        np.testing.assert_allclose(gradient[1, [1, 3, 4, 5]], slope(other) * np.array([-1, 1, 1, 1]), rtol=1e-5)
        np.testing.assert_array_equal(gradient[0, [6, 12]], 0.0)  # said alike
    assert not np.asarray(gradient)[~here].any()


def test_at_the_reference_every_state_costs_log_two_and_an_empty_row_nothing() -> None:
    batch, _, _ = compared()
    value = implicit.preference_loss(batch, jnp.asarray(batch.reference_logprobs), jnp.zeros((3, 17)), beta=0.1)
    np.testing.assert_allclose(value, 2 * np.log(2.0), rtol=1e-6)
