"""Implicit reflection: at each of the expert's states, its action is to gain likelihood on the policy's own (StepAgent, implicit
reflection).

With h(a) = log π(a | ŝ) - log π_ref(a | ŝ), summed over the action's tokens, the loss of a pair (expert â, policy a) is -log σ(β h(â) - β h(a)). The
paper writes the expert's policy where a reference is needed, which for text nobody has: the reference is the policy at the start of
the cycle (or at the start of the first: the clone of the expert). Pairs that say the same have no gradient and are left out.

A pair is one row of a batch, state and expert action as its first segment, state and policy action as its second; the loss weights are +1 on the
expert's tokens and -1 on the policy's, so that a row's Σ weight · (log π - log π_ref) is h(â) - h(a).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.batch import UNKNOWN_LOGPROB, ComparedBatch, TrajectoryBatch
from epo_jax.learn.losses import said, trajectories_in
from epo_jax.learn.rows import Row, steps_of
from epo_jax.stepagent.inspection import Pair


def preference_loss(batch: ComparedBatch, logprobs: jax.Array, entropies: jax.Array, *, beta: float, clone_weight: float = 0.0) -> jax.Array:
    """2 Σ -log σ(β (h(â) - h(a))) over the rows [B,T]; the step divides by the trajectories, two a pair, so it is the mean over pairs.

    clone_weight (not in the paper): of the mean -log π of the expert's tokens besides. The loss above only asks the expert's action to gain on the
    other; it is met as well when both become unlikely.
    """
    here = said(batch)
    margins = jnp.sum(jnp.where(here, batch.loss_weights * (logprobs - batch.reference_logprobs), 0.0), axis=-1)
    pairs = trajectories_in(batch) > 0
    loss = jnp.sum(jnp.where(pairs, jax.nn.softplus(-beta * margins), 0.0))
    if clone_weight:
        expert = here & (batch.loss_weights > 0)
        share = jnp.where(expert, 1.0 / jnp.maximum(1, jnp.sum(expert, axis=-1, keepdims=True)), 0.0)
        loss -= clone_weight * jnp.sum(share * logprobs)
    return 2.0 * loss


def batches(pairs: Sequence[Pair], *, rows: int, accumulation: int, lengths: Sequence[int], pad_id: int) -> list[TrajectoryBatch]:
    """Optimizer steps [accumulation, rows, T], a pair a row. T is twice one of `lengths` (tokens of a state with its action)."""
    doubled = [2 * length for length in lengths]
    made = steps_of([_row(pair) for pair in pairs], accumulation=accumulation, size=rows, lengths=doubled, fill={"tokens": pad_id})
    return [TrajectoryBatch(**step) for step in made]


def _row(pair: Pair) -> Row:
    actions = (pair.expert, pair.policy)
    read, lengths = len(pair.state), [len(pair.state) + len(action) for action in actions]
    marks = np.concatenate([np.repeat([0, 1], [read, len(action)]) for action in actions])
    segments = np.repeat([1, 2], lengths)
    behaviour = [np.full(len(pair.expert), UNKNOWN_LOGPROB), np.asarray(pair.logprobs)]
    return {
        "tokens": np.concatenate([np.asarray([*pair.state, *action], np.int32) for action in actions]),
        "positions": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "segment_ids": segments.astype(np.int32),
        "loss_weights": np.where(segments == 1, marks, -marks).astype(np.float32),
        "behavior_logprobs": np.concatenate([np.concatenate([np.zeros(read), each]) for each in behaviour]).astype(np.float32),
        "turn_ids": (marks * segments).astype(np.int32),
    }
