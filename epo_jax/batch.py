"""Trajectories with advantages to arrays of fixed shapes: the only form in which the learner sees them.

Shapes: A accumulation (forward passes of one optimizer step), B rows, T time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from epo_jax.errors import UserError
from epo_jax.trajectory import Trajectory

# Log-probabilities are never above 0, so this marks a token whose behaviour log-probability nobody recorded (demonstrations, imported data).
UNKNOWN_LOGPROB = 1.0


class TrajectoryBatch(NamedTuple):
    """Arrays of one shape [..., B, T]; entry t of each belongs to the token at t itself (not to the one that it predicts).

    tokens             int32    the tokens as they were read and sampled
    positions          int32    place in the trajectory, from 0; 0 on padding
    segment_ids        int32    1, 2, ... for the trajectories of a row; 0 is padding. A row with no other than 0 is no row
    loss_weights       float32  the coefficient of -log π(tokens[t] | tokens before t): A_t / (T_i k_t) on strategist tokens, else 0
    behavior_logprobs  float32  log π of the token when it was sampled; UNKNOWN_LOGPROB where not recorded, 0 off the strategist's tokens
    turn_ids           int32    1, 2, ... for the strategist turns of a row; 0 on everything else
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray


@dataclasses.dataclass
class PadCounts:
    """What `pad` did: nothing is left out silently."""

    trajectories: int = 0  # that are in the batches
    masked: int = 0  # left out because something failed in them
    without_turns: int = 0  # left out because there is nothing to learn in them
    too_long: int = 0  # left out because not even the first turn fits
    shortened: int = 0  # that lost whole turns at their end
    dropped_turns: int = 0  # that they lost, those of the `too_long` included
    tokens: int = 0  # in the batches, padding not counted
    padding: int = 0  # entries that are padding

    @property
    def padding_share(self) -> float:
        """Padding over all entries, 0 where there are none."""
        return self.padding / max(1, self.padding + self.tokens)


class _Row(NamedTuple):
    """One trajectory as arrays [t]."""

    tokens: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray


def pad(
    trajectories: Sequence[Trajectory],
    *,
    length_buckets: Sequence[int],
    rows: int,
    max_length: int,
    pad_id: int,
    accumulation: int = 1,
) -> tuple[list[TrajectoryBatch], PadCounts]:
    """Batches [accumulation, rows, T], one trajectory a row, in the order given; each is one optimizer step.

    T is the smallest of `length_buckets` (tokens) that holds the step's longest trajectory, so the step compiles at most once a bucket. The
    last step is filled up with empty rows. `max_length` (tokens) cuts: a longer trajectory loses whole turns at its end. Its advantages were
    computed from the whole episode, so the outcome is not lost with them, and T_i still counts all its turns: what stays weighs what it
    would have weighed. Masked trajectories are left out.

    Raises ValueError for a turn without an advantage in a trajectory that is not masked, UserError for buckets that do not reach max_length.
    """
    if rows < 1 or accumulation < 1:
        raise UserError(f"a batch of {rows} rows and {accumulation} accumulated passes is not possible: give at least 1 of each.")
    buckets = sorted(length_buckets)
    if not buckets or buckets[0] < 1 or buckets[-1] < max_length:
        raise UserError(f"the length buckets {list(length_buckets)} do not reach the maximum length {max_length}: add a bucket of {max_length} tokens.")
    counts = PadCounts()
    flat: list[_Row] = []
    for trajectory in trajectories:
        if trajectory.masked is not None:
            counts.masked += 1
        elif not trajectory.turns:
            counts.without_turns += 1
        elif (row := _flatten(trajectory, max_length, counts)) is not None:
            flat.append(row)
    counts.trajectories = len(flat)

    per_step = rows * accumulation
    batches = []
    for start in range(0, len(flat), per_step):
        group = flat[start : start + per_step]
        longest = max(len(row.tokens) for row in group)
        length = next(bucket for bucket in buckets if bucket >= longest)
        batches.append(_stack(group, accumulation, rows, length, pad_id))
        used = sum(len(row.tokens) for row in group)
        counts.tokens += used
        counts.padding += per_step * length - used
    return batches, counts


def _flatten(trajectory: Trajectory, max_length: int, counts: PadCounts) -> _Row | None:
    """The token stream of as many turns as fit, with weights A_t / (T_i k_t); None if the first does not fit."""
    tokens: list[int] = []
    weights: list[float] = []
    behavior: list[float] = []
    turn_ids: list[int] = []
    total = len(trajectory.turns)
    for number, turn in enumerate(trajectory.turns, start=1):
        if turn.advantage is None:
            raise ValueError(f"task {trajectory.task_id!r}: turn {number} has no advantage; estimate advantages before batching")
        if len(turn.logprobs) not in (0, len(turn.tokens)):
            raise ValueError(f"task {trajectory.task_id!r}: turn {number} has {len(turn.tokens)} tokens but {len(turn.logprobs)} log-probabilities")
        if len(tokens) + len(turn.prompt_tokens) + len(turn.tokens) > max_length:
            counts.dropped_turns += total - number + 1
            if number == 1:
                counts.too_long += 1
                return None
            counts.shortened += 1
            break
        read, said = len(turn.prompt_tokens), len(turn.tokens)
        tokens += turn.prompt_tokens
        tokens += turn.tokens
        weights += [0.0] * read + [turn.advantage / (total * said)] * said if said else [0.0] * read
        behavior += [0.0] * read + (list(turn.logprobs) or [UNKNOWN_LOGPROB] * said)
        turn_ids += [0] * read + [number] * said
    return _Row(
        np.asarray(tokens, np.int32), np.asarray(weights, np.float32), np.asarray(behavior, np.float32), np.asarray(turn_ids, np.int32)
    )


def _stack(group: Sequence[_Row], accumulation: int, rows: int, length: int, pad_id: int) -> TrajectoryBatch:
    """[accumulation, rows, length] from at most accumulation * rows rows."""
    size = accumulation * rows
    batch = TrajectoryBatch(
        tokens=np.full((size, length), pad_id, np.int32),
        positions=np.zeros((size, length), np.int32),
        segment_ids=np.zeros((size, length), np.int32),
        loss_weights=np.zeros((size, length), np.float32),
        behavior_logprobs=np.zeros((size, length), np.float32),
        turn_ids=np.zeros((size, length), np.int32),
    )
    for index, row in enumerate(group):
        used = len(row.tokens)
        batch.tokens[index, :used] = row.tokens
        batch.positions[index, :used] = np.arange(used)
        batch.segment_ids[index, :used] = 1
        batch.loss_weights[index, :used] = row.loss_weights
        batch.behavior_logprobs[index, :used] = row.behavior_logprobs
        batch.turn_ids[index, :used] = row.turn_ids
    return TrajectoryBatch(*(array.reshape(accumulation, rows, length) for array in batch))
