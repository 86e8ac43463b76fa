"""Rows that branch: the expert's trajectory is the trunk, and what the policy would have done at each of its states a branch.

Every state is a beginning of the trunk, so the row reads it once for all that is said there: about as many tokens as the trajectory has, where
a row for each state and action would have as many again for each of them.

Shapes: t tokens of one row, n states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from epo_jax.batch import UNKNOWN_LOGPROB, BranchedBatch
from epo_jax.learn.rows import Row, steps_of
from epo_jax.model.attention import TRUNK
from epo_jax.trajectory import Trajectory

FILL = {"forks": TRUNK}  # what stands on padding, where it is not 0


@dataclasses.dataclass(frozen=True)
class Branched:
    """An inspected trajectory [t]: the trunk, then the branches in the order of their states.

    A branch begins with its state's last token again, which the trunk holds too: as everywhere, a token is predicted by the one on its left.

    tokens, positions, forks  int32    forks: the position at which a token's branch leaves the trunk, TRUNK on it
    expert, policy            int32    1 … n on the tokens of the two actions at a state, else 0
    behavior_logprobs         float32  of the policy's tokens when they were sampled; UNKNOWN_LOGPROB on the expert's
    """

    tokens: np.ndarray
    positions: np.ndarray
    forks: np.ndarray
    expert: np.ndarray
    policy: np.ndarray
    behavior_logprobs: np.ndarray

    def arrays(self) -> Row:
        """What every kind of batch has of it."""
        return {"tokens": self.tokens, "positions": self.positions, "segment_ids": np.ones_like(self.tokens), "forks": self.forks}


def of(trajectory: Trajectory) -> Branched:
    """The row of a trajectory that holds what `inspection.inspect` leaves, one action of the policy's for every turn."""
    trunk, branches, length = [], [], 0
    for number, (turn, found) in enumerate(zip(trajectory.turns, trajectory.extra["inspected"], strict=True), start=1):
        trunk.append(_piece(turn.prompt_tokens, length, TRUNK))
        length += len(turn.prompt_tokens)
        trunk.append(_piece(turn.tokens, length, TRUNK, expert=number, logprobs=[UNKNOWN_LOGPROB] * len(turn.tokens)))
        branches.append(_piece(turn.prompt_tokens[-1:], length - 1, length - 1))
        branches.append(_piece(found["tokens"], length, length - 1, policy=number, logprobs=found["logprobs"]))
        length += len(turn.tokens)
    return Branched(*(np.concatenate(arrays) for arrays in zip(*trunk, *branches, strict=True)))


def trunk_of(trajectory: Trajectory) -> Branched:
    """A trajectory's own tokens as a row without a branch; no action in it is numbered."""
    return Branched(*_piece(trajectory.tokens, 0, TRUNK))


def _piece(
    tokens: Sequence[int], start: int, fork: int, *, expert: int = 0, policy: int = 0, logprobs: Sequence[float] = ()
) -> tuple[np.ndarray, ...]:
    """The arrays of `Branched` for tokens that stand together, from position `start` on."""
    count = len(tokens)
    numbers = (np.full(count, each, np.int32) for each in (fork, expert, policy))
    return np.asarray(tokens, np.int32), start + np.arange(count, dtype=np.int32), *numbers, np.asarray(logprobs or np.zeros(count), np.float32)


def ends(marks: np.ndarray) -> np.ndarray:
    """The places [n] of the last tokens of the actions that `marks` (`Branched.expert` or `policy`, [t]) numbers, in order."""
    return np.flatnonzero((marks > 0) & (marks != np.append(marks[1:], 0)))


def batches(rows: Sequence[Row], *, size: int, accumulation: int, lengths: Sequence[int], pad_id: int) -> Iterator[BranchedBatch]:
    """Optimizer steps [accumulation, size, T] of the rows of BranchedBatches, in the order given.

    Within a step the longest come first, so that those of a pass are about equally long, as in `batch.pad`.
    """
    for start in range(0, len(rows), size * accumulation):
        step = sorted(rows[start : start + size * accumulation], key=lambda row: -len(row["tokens"]))
        (arrays,) = steps_of(step, accumulation=accumulation, size=size, lengths=lengths, fill=FILL | {"tokens": pad_id})
        yield BranchedBatch(**arrays)
