"""Trajectories with advantages to arrays of fixed shapes: the only form in which the learner sees them.

`pad` lays one trajectory in a row; `pack` lays several, as segments that do not see each other. Both give the same optimizer steps: the same
trajectories, each counted once, so that loss and gradient are equal but for rounding.

Shapes: A accumulation (forward passes of one optimizer step), B rows, T time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from epo_jax.errors import UserError
from epo_jax.trajectory import Trajectory

# Log-probabilities are never above 0, so this marks a token whose behaviour log-probability nobody recorded (demonstrations, imported data).
UNKNOWN_LOGPROB = 1.0
ENOUGH_PADDING = 0.05  # of a packed step: with less, another length is not worth compiling for

# What a token's advantage is divided by; the step then divides the sum over its trajectories by their number. T_i turns of k_t tokens.
#   turn        T_i k_t (as published): every turn of a trajectory weighs the same, however long; a short episode's turns weigh more
#   trajectory  Σ_t k_t: every token of a trajectory weighs the same (Shao et al. 2024, arXiv:2402.03300)
#   token       the step's tokens over its trajectories: every token of the step weighs the same (Yu et al. 2025, arXiv:2503.14476)
# Turns that were dropped at the end count in T_i and Σ_t k_t: what stays weighs what it would have weighed.
NORMALISATIONS = ("turn", "token", "trajectory")


class TrajectoryBatch(NamedTuple):
    """Arrays of one shape [..., B, T]; entry t of each belongs to the token at t itself (not to the one that it predicts).

    tokens             int32    the tokens as they were read and sampled
    positions          int32    place in the trajectory, from 0 in each segment; 0 on padding
    segment_ids        int32    1, 2, ... for the trajectories of a row; 0 is padding. A row with no other than 0 is no row
    loss_weights       float32  the coefficient of -log π(tokens[t] | tokens before t): A_t / (T_i k_t) on what it said, else 0 (see NORMALISATIONS)
    behavior_logprobs  float32  log π of the token when it was sampled; UNKNOWN_LOGPROB where not recorded, 0 off the strategist's tokens
    turn_ids           int32    1, 2, ... for the strategist turns of a row; 0 on everything else
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray


class BranchedBatch(NamedTuple):
    """A `TrajectoryBatch` whose rows branch. forks int32: the position at which a token's branch leaves the trunk, as in `model.attention`."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray
    forks: np.ndarray


class ComparedBatch(NamedTuple):
    """A `TrajectoryBatch` or `BranchedBatch` for losses that compare the learner with frozen weights. reference_logprobs float32: their log π of
    the same tokens."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray
    reference_logprobs: np.ndarray
    forks: np.ndarray | None = None


def forks_of(batch: TrajectoryBatch | BranchedBatch | ComparedBatch) -> np.ndarray | None:
    """Where the batch's rows branch; None where none does."""
    return getattr(batch, "forks", None)


@dataclasses.dataclass
class BatchCounts:
    """What `pad` or `pack` did: nothing is left out silently."""

    trajectories: int = 0  # that are in the batches
    masked: int = 0  # left out because something failed in them
    without_turns: int = 0  # left out because there is nothing to learn in them
    too_long: int = 0  # left out because not even the first turn fits
    shortened: int = 0  # that lost whole turns at their end
    dropped_turns: int = 0  # that they lost, those of the `too_long` included
    tokens: int = 0  # in the batches, padding not counted
    padding: int = 0  # entries that are padding and that the step computes: none of empty passes, nor past a pass's own length

    @property
    def padding_share(self) -> float:
        """Padding over all entries, 0 where there are none."""
        return self.padding / max(1, self.padding + self.tokens)


class _Piece(NamedTuple):
    """One trajectory as arrays [t]."""

    tokens: np.ndarray
    loss_weights: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray


def make_batches(
    trajectories: Sequence[Trajectory], *, packing: bool, length_buckets: Sequence[int], ways: int = 1, **options: int | str
) -> tuple[list[TrajectoryBatch], BatchCounts]:
    """`pack` (several trajectories a row, `ways` rows a pass) or `pad` (one, in lengths from `length_buckets`); `options` are those of both."""
    if packing:
        return pack(trajectories, ways=ways, **options)
    return pad(trajectories, length_buckets=length_buckets, **options)


def pad(
    trajectories: Sequence[Trajectory],
    *,
    length_buckets: Sequence[int],
    rows: int,
    max_length: int,
    pad_id: int,
    accumulation: int = 1,
    normalisation: str = "turn",
) -> tuple[list[TrajectoryBatch], BatchCounts]:
    """Batches [accumulation, rows, T], one trajectory a row; each is one optimizer step, of the next trajectories in the order given.

    Within a step the longest trajectories come first, so that those of a pass are about equally long: each pass is computed at the smallest
    of `length_buckets` (tokens) that holds it, and the step compiles at most once a bucket. T is the largest bucket. The last step is filled
    up with empty rows. `max_length` (tokens) cuts: a longer trajectory loses whole turns at its end. Its advantages were
    computed from the whole episode, so the outcome is not lost with them, and T_i still counts all its turns: what stays weighs what it
    would have weighed. Masked trajectories are left out.

    Raises ValueError for a turn without an advantage in a trajectory that is not masked, UserError for buckets that do not reach max_length.
    """
    _check_shape(rows, accumulation)
    check_buckets(length_buckets, max_length)
    buckets = sorted(length_buckets)
    pieces, counts = _pieces(trajectories, max_length, normalisation)
    batches = []
    for group in _steps(pieces, rows * accumulation, normalisation):
        longest_first = sorted(group, key=lambda piece: -len(piece.tokens))
        batches.append(_stack([[piece] for piece in longest_first], accumulation, rows, buckets[-1], pad_id))
        _count(batches[-1], counts, buckets)
    return batches, counts


def check_buckets(length_buckets: Sequence[int], max_length: int) -> None:
    """Raises `UserError` for lengths (tokens) that cannot hold every trajectory."""
    if not length_buckets or min(length_buckets) < 1 or max(length_buckets) < max_length:
        raise UserError(f"the length buckets {list(length_buckets)} do not reach the maximum length {max_length}: add a bucket of {max_length} tokens.")


def pack(
    trajectories: Sequence[Trajectory],
    *,
    rows: int,
    max_length: int,
    pad_id: int,
    accumulation: int = 1,
    ways: int = 1,
    normalisation: str = "turn",
) -> tuple[list[TrajectoryBatch], BatchCounts]:
    """Batches [ceil(rows * accumulation / ways), ways, T], several trajectories a row; each is one optimizer step.

    A step holds the `rows` * `accumulation` trajectories that a padded one holds. They fill as many rows as they need, first fit decreasing
    (Johnson 1973: longest first, each into the first row with room), `ways` rows a pass: the number of devices that rows are split over. What
    is left of the A passes is empty, and the step does not compute it; so the shape depends on T alone.

    T is a multiple of a sixteenth of `max_length`: the first, quarters and eighths before the others, that leaves at most `ENOUGH_PADDING` of
    the step as padding, else the one that leaves least. It is at most twice `max_length` (attention costs more in a longer row), and a pass
    is never larger than a padded one may be, `rows` * `max_length`. A step therefore compiles at most 32 times: for two lengths in practice
    where a step holds 64 trajectories, for a dozen where it holds 16.

    What is cut, left out or refused is as in `pad`.
    """
    _check_shape(rows, accumulation)
    pieces, counts = _pieces(trajectories, max_length, normalisation)
    finest = -(-max_length // 16)
    longest_row = max(max_length, min(2 * max_length, rows * max_length // ways))
    coarse_first = sorted(range(1, 33), key=lambda number: (-math.gcd(number, 4), number))  # so that the same lengths come again
    lengths = list(dict.fromkeys(min(number * finest, longest_row) for number in coarse_first))
    batches = []
    for group in _steps(pieces, rows * accumulation, normalisation):
        length, packed = _first_fit(group, lengths, ways)
        batches.append(_stack(packed, -(-rows * accumulation // ways), ways, length, pad_id))
        _count(batches[-1], counts, [length])
    return batches, counts


def pass_lengths(batch: TrajectoryBatch, lengths: Sequence[int]) -> list[int]:
    """For each pass of a batch [A,B,T] the smallest of the ascending `lengths` that holds all its tokens; T where none does, 0 for an empty pass."""
    result = []
    for segments in batch.segment_ids:
        held = np.flatnonzero(np.any(segments > 0, axis=0))
        needed, whole = (int(held[-1]) + 1 if held.size else 0), segments.shape[-1]
        result.append(next((length for length in lengths if needed <= length <= whole), whole) if needed else 0)
    return result


def turns_that_fit(trajectory: Trajectory, max_length: int) -> int:
    """How many of its first turns are at most `max_length` tokens long together."""
    length = 0
    for number, turn in enumerate(trajectory.turns):
        length += len(turn.prompt_tokens) + len(turn.tokens)
        if length > max_length:
            return number
    return len(trajectory.turns)


# --- which trajectories stand where -------------------------------------------------------------------------------------------------------


def _first_fit(group: Sequence[_Piece], lengths: Sequence[int], ways: int) -> tuple[int, list[list[_Piece]]]:
    """T and the rows of one step, first fit decreasing; the first of `lengths` with little padding, else the best."""
    longest_first = sorted(group, key=lambda piece: -len(piece.tokens))
    used = sum(len(piece.tokens) for piece in group)
    best: tuple[int, int, list[list[_Piece]]] | None = None
    for length in lengths:
        if length < len(longest_first[0].tokens):
            continue
        packed: list[list[_Piece]] = []
        room: list[int] = []
        for piece in longest_first:
            size = len(piece.tokens)
            place = next((index for index, left in enumerate(room) if left >= size), len(room))
            if place == len(room):
                packed.append([])
                room.append(length)
            packed[place].append(piece)
            room[place] -= size
        entries = -(-len(packed) // ways) * ways * length
        if best is None or entries < best[0]:
            best = entries, length, packed
        if entries - used <= ENOUGH_PADDING * entries:
            return length, packed
    assert best is not None  # no piece is longer than the longest of the lengths
    return best[1], best[2]


def _check_shape(rows: int, accumulation: int) -> None:
    if rows < 1 or accumulation < 1:
        raise UserError(f"a batch of {rows} rows and {accumulation} accumulated passes is not possible: give at least 1 of each.")


def _pieces(trajectories: Sequence[Trajectory], max_length: int, normalisation: str) -> tuple[list[_Piece], BatchCounts]:
    """The trajectories that are trained on, as arrays; the others are counted."""
    if normalisation not in NORMALISATIONS:
        raise UserError(f"learn.normalisation is {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}.")
    counts = BatchCounts()
    pieces: list[_Piece] = []
    for trajectory in trajectories:
        if trajectory.masked is not None:
            counts.masked += 1
        elif not trajectory.turns:
            counts.without_turns += 1
        elif (piece := _flatten(trajectory, max_length, normalisation, counts)) is not None:
            pieces.append(piece)
    counts.trajectories = len(pieces)
    return pieces, counts


def _steps(pieces: Sequence[_Piece], size: int, normalisation: str) -> Iterator[Sequence[_Piece]]:
    for start in range(0, len(pieces), size):
        group = pieces[start : start + size]
        if normalisation == "token":
            tokens = sum(np.count_nonzero(piece.turn_ids) for piece in group)
            scale = np.float32(len(group) / max(1, tokens))
            group = [piece._replace(loss_weights=piece.loss_weights * scale) for piece in group]
        yield group


# --- arrays ---------------------------------------------------------------------------------------------------------------------------------


def _flatten(trajectory: Trajectory, max_length: int, normalisation: str, counts: BatchCounts) -> _Piece | None:
    """The token stream of as many turns as fit, with weights as `normalisation` says (A_t itself for "token", which `_steps` divides); None if the
    first does not fit."""
    tokens: list[int] = []
    weights: list[float] = []
    behavior: list[float] = []
    turn_ids: list[int] = []
    total, fitting = len(trajectory.turns), turns_that_fit(trajectory, max_length)
    counts.dropped_turns += total - fitting
    if fitting == 0:
        counts.too_long += 1
        return None
    counts.shortened += fitting < total
    tokens_in_all = sum(len(turn.tokens) for turn in trajectory.turns)
    for number, turn in enumerate(trajectory.turns[:fitting], start=1):
        if turn.advantage is None:
            raise ValueError(f"task {trajectory.task_id!r}: turn {number} has no advantage; estimate advantages before batching")
        if len(turn.logprobs) not in (0, len(turn.tokens)):
            raise ValueError(f"task {trajectory.task_id!r}: turn {number} has {len(turn.tokens)} tokens but {len(turn.logprobs)} log-probabilities")
        if len(turn.token_advantages) not in (0, len(turn.tokens)):
            raise ValueError(f"task {trajectory.task_id!r}: turn {number} has {len(turn.tokens)} tokens but {len(turn.token_advantages)} advantages")
        read, said = len(turn.prompt_tokens), len(turn.tokens)
        tokens += turn.prompt_tokens
        tokens += turn.tokens
        divisor = {"turn": total * said, "trajectory": tokens_in_all, "token": 1}[normalisation]
        weights += [0.0] * read + [advantage / divisor for advantage in turn.token_advantages or [turn.advantage] * said]
        behavior += [0.0] * read + (list(turn.logprobs) or [UNKNOWN_LOGPROB] * said)
        turn_ids += [0] * read + [number] * said
    return _Piece(
        np.asarray(tokens, np.int32), np.asarray(weights, np.float32), np.asarray(behavior, np.float32), np.asarray(turn_ids, np.int32)
    )


def _stack(packed: Sequence[Sequence[_Piece]], accumulation: int, rows: int, length: int, pad_id: int) -> TrajectoryBatch:
    """[accumulation, rows, length] from at most accumulation * rows rows, each of one piece or several."""
    size = accumulation * rows
    batch = TrajectoryBatch(
        tokens=np.full((size, length), pad_id, np.int32),
        positions=np.zeros((size, length), np.int32),
        segment_ids=np.zeros((size, length), np.int32),
        loss_weights=np.zeros((size, length), np.float32),
        behavior_logprobs=np.zeros((size, length), np.float32),
        turn_ids=np.zeros((size, length), np.int32),
    )
    for index, pieces in enumerate(packed):
        start = turns = 0
        for segment, piece in enumerate(pieces, start=1):
            here = slice(start, start + len(piece.tokens))
            batch.tokens[index, here] = piece.tokens
            batch.positions[index, here] = np.arange(len(piece.tokens))
            batch.segment_ids[index, here] = segment
            batch.loss_weights[index, here] = piece.loss_weights
            batch.behavior_logprobs[index, here] = piece.behavior_logprobs
            batch.turn_ids[index, here] = np.where(piece.turn_ids, piece.turn_ids + turns, 0)
            start, turns = here.stop, turns + int(piece.turn_ids.max())
    return TrajectoryBatch(*(array.reshape(accumulation, rows, length) for array in batch))


def _count(batch: TrajectoryBatch, counts: BatchCounts, lengths: Sequence[int]) -> None:
    """Tokens, and the padding of passes that are cut to the `lengths`."""
    tokens = int((batch.segment_ids > 0).sum())
    counts.tokens += tokens
    counts.padding += sum(pass_lengths(batch, lengths)) * batch.segment_ids.shape[1] - tokens
