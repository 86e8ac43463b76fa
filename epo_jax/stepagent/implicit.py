"""Implicit reflection: at each of the expert's states, its action is to gain likelihood on the policy's own (StepAgent, implicit
reflection).

With h(a) = log π(a | ŝ) - log π_ref(a | ŝ), summed over the action's tokens, the loss of a pair (expert â, policy a) is -log σ(β h(â) - β h(a)). The
paper writes the expert's policy where a reference is needed, which for text nobody has: the reference is the policy at the start of
the cycle (or at the start of the first: the clone of the expert).

All pairs of a trajectory are one row that branches (branches.py); the loss weights are +1 on the expert's tokens and -1 on the policy's, so that a
state's Σ weight · (log π - log π_ref) is h(â) - h(a). A pair that says the same has no gradient, and weights 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.batch import BranchedBatch, ComparedBatch
from epo_jax.learn.losses import said
from epo_jax.learn.rows import Row
from epo_jax.model.attention import TRUNK
from epo_jax.stepagent import branches
from epo_jax.stepagent.inspection import differing
from epo_jax.trajectory import Trajectory


def preference_loss(batch: ComparedBatch, logprobs: jax.Array, entropies: jax.Array, *, beta: float, clone_weight: float = 0.0) -> jax.Array:
    """Σ over the rows [B,T] of the mean of -log σ(β (h(â) - h(a))) over a row's states; the step divides by the rows.

    clone_weight (not in the paper): of the mean over states of the mean -log π of the expert's tokens besides. The loss above only asks the
    expert's action to gain on the other; it is met as well when both become unlikely.
    """
    here = said(batch)
    states = jnp.max(batch.turn_ids, axis=-1, keepdims=True)  # [B,1]
    numbers = jnp.arange(1, batch.turn_ids.shape[-1] + 1)  # no row holds more states than tokens
    share = (numbers <= states) / jnp.maximum(1, states)

    def by_state(values: jax.Array) -> jax.Array:
        """[B,T] summed over the tokens of each state's actions: [B,T], the first state at 0."""
        total = jax.vmap(lambda row, ids: jax.ops.segment_sum(row, ids, num_segments=row.shape[0] + 1))
        return total(jnp.where(here, values, 0.0), batch.turn_ids)[:, 1:]

    margins = by_state(batch.loss_weights * (logprobs - batch.reference_logprobs))
    loss = jnp.sum(share * jax.nn.softplus(-beta * margins))
    if clone_weight:
        expert = (batch.forks == TRUNK).astype(jnp.float32)
        loss -= clone_weight * jnp.sum(share * by_state(expert * logprobs) / jnp.maximum(1.0, by_state(expert)))
    return loss


def batches(trajectories: Sequence[Trajectory], *, rows: int, accumulation: int, lengths: Sequence[int], pad_id: int) -> list[BranchedBatch]:
    """Optimizer steps [accumulation, rows, T], an inspected trajectory a row."""
    made = [_row(trajectory) for trajectory in trajectories]
    return list(branches.batches(made, size=rows, accumulation=accumulation, lengths=lengths, pad_id=pad_id))


def _row(trajectory: Trajectory) -> Row:
    row, differ = branches.of(trajectory), np.append(False, differing(trajectory))  # by number, 0 is no state
    return row.arrays() | {
        "loss_weights": (differ[row.expert] * 1.0 - differ[row.policy] * 1.0).astype(np.float32),
        "behavior_logprobs": row.behavior_logprobs,
        "turn_ids": row.expert + row.policy,
    }
