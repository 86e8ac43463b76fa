"""Rows that branch score what is said at every state as rows of one state and one action do, and nothing of them leaks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.batch import UNKNOWN_LOGPROB
from epo_jax.learn.losses import token_logprobs
from epo_jax.model import llama
from epo_jax.model.attention import TRUNK
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.stepagent import branches, implicit
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8)


def inspected(turns: int = 3, seed: int = 0, spread: int = 4) -> Trajectory:
    """A trajectory of random tokens with what a policy said at each state."""
    random = np.random.default_rng(seed)
    some = lambda: random.integers(2, 64, random.integers(1, spread)).tolist()  # noqa: E731
    trajectory = Trajectory("test", "x", turns=[Turn(prompt_tokens=some(), tokens=some(), strategy="expert") for _ in range(turns)])
    said = [some() for _ in range(turns)]
    trajectory.extra["inspected"] = [{"tokens": one, "logprobs": [-1.0] * len(one), "text": "policy"} for one in said]
    return trajectory


def parameters():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32), declare(CONFIG))


@jax.jit
def logits(params, tokens: jax.Array) -> jax.Array:
    hidden = llama.hidden_states(params, CONFIG, tokens[None], jnp.arange(tokens.shape[0])[None], jnp.ones_like(tokens)[None])
    return jax.nn.log_softmax(llama.logits(params, CONFIG, hidden))[0]


def alone(params, state: list[int], action: list[int]) -> np.ndarray:
    """log π of the action's tokens in a row that holds nothing else."""
    length = len(state) + len(action)
    tokens = np.zeros(-(-length // 256) * 256, np.int32)  # what follows is seen by nobody before it
    tokens[:length] = [*state, *action]
    return np.asarray(logits(params, tokens))[np.arange(len(state) - 1, length - 1), np.array(action)]


def test_a_row_by_hand() -> None:
    trajectory = Trajectory("test", "x", turns=[Turn(prompt_tokens=[1, 2], tokens=[3]), Turn(prompt_tokens=[4], tokens=[5, 6])])
    trajectory.extra["inspected"] = [{"tokens": [7, 8], "logprobs": [-1.0, -2.0], "text": ""}, {"tokens": [9], "logprobs": [-3.0], "text": ""}]
    row = branches.of(trajectory)
    assert row.tokens.tolist() == [1, 2, 3, 4, 5, 6, 2, 7, 8, 4, 9]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 1, 2, 3, 3, 4]
    assert row.forks.tolist() == [TRUNK] * 6 + [1, 1, 1, 3, 3]
    assert row.expert.tolist() == [0, 0, 1, 0, 2, 2, 0, 0, 0, 0, 0]
    assert row.policy.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 2]
    unknown = UNKNOWN_LOGPROB
    assert row.behavior_logprobs.tolist() == [0, 0, unknown, 0, unknown, unknown, 0, -1, -2, 0, -3]
    assert branches.ends(row.expert).tolist() == [2, 5] and branches.ends(row.policy).tolist() == [8, 10]


@pytest.mark.parametrize(("turns", "spread"), [(3, 4), (24, 12)])  # in one block of queries, and in several
def test_every_action_scores_as_it_does_alone(turns: int, spread: int) -> None:
    params, trajectories = parameters(), [inspected(turns, seed, spread) for seed in (0, 1)]
    (step,) = implicit.batches(trajectories, rows=3, accumulation=1, lengths=(64, 512), pad_id=0)
    batch = jax.tree.map(lambda array: jnp.asarray(array[0]), step)
    logprobs = np.asarray(token_logprobs(params, CONFIG, batch)[0])
    assert not logprobs[np.asarray(batch.turn_ids) == 0].any()
    longest_first = sorted(trajectories, key=lambda one: -len(branches.of(one).tokens))
    for scored, trajectory in zip(logprobs, longest_first):
        row, state = branches.of(trajectory), []
        for number, (turn, found) in enumerate(zip(trajectory.turns, trajectory.extra["inspected"]), start=1):
            state += turn.prompt_tokens
            for action, marks in ((turn.tokens, row.expert), (found["tokens"], row.policy)):
                np.testing.assert_allclose(scored[: len(marks)][marks == number], alone(params, state, action), atol=2e-5)
            state += turn.tokens


def test_a_branch_changes_nothing_outside_of_it() -> None:
    params, trajectory = parameters(), inspected(4)
    row = branches.of(trajectory)
    given = [jnp.asarray(array)[None] for array in (row.tokens, row.positions, np.ones_like(row.tokens))]
    hidden = llama.hidden_states(params, CONFIG, *given, forks=jnp.asarray(row.forks)[None])[0]
    other = given[0].at[0, np.flatnonzero(row.policy == 2)].set(1)
    changed = llama.hidden_states(params, CONFIG, other, *given[1:], forks=jnp.asarray(row.forks)[None])[0]
    same = np.asarray(jnp.all(hidden == changed, axis=-1))
    np.testing.assert_array_equal(same, row.policy != 2)
