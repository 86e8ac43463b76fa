"""Recorded conversations made ready for the learner: read, checked, given tokens, and cut where they are too long."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

from epo_jax.batch import turns_that_fit
from epo_jax.errors import UserError
from epo_jax.model.conversation import ConversationFormat
from epo_jax.published import PublishedFile, as_one, read_published
from epo_jax.report.console import say
from epo_jax.trajectory import Trajectory

OVERLONG = ("drop", "split")
MALFORMED_SHOWN = 20  # rows; the rest are in the run's data.json


@dataclasses.dataclass
class Cut:
    """What became of conversations longer than the maximum length."""

    longer: int = 0  # conversations
    dropped_turns: int = 0
    left_out: int = 0  # conversations of which not even one turn fits
    parts: int = 0  # that the longer ones were split into


# --- the file -------------------------------------------------------------------------------------------------------------------------------


def read(path: str, allowed: float, *, scored: bool = True) -> PublishedFile:
    """The conversations of a file that can be learned from; the other rows are listed on the terminal and skipped.

    scored: those without a score cannot; else only those without a reply.

    Raises `UserError` for a file that cannot be read, or has more malformed rows than `allowed` (a share), or nothing to learn from.
    """
    if not path:
        raise UserError("no conversations: say which file, as in --config.data=conversations.json.")
    file = read_published(path, spoken=True, scored=scored)
    if not file.rows:
        raise UserError(f"{path} holds no conversations: its list is empty.")
    for malformed in file.malformed[:MALFORMED_SHOWN]:
        say(f"{path}, {malformed}")
    count = len(file.malformed)
    if count > MALFORMED_SHOWN:
        say(f"{path}: {count - MALFORMED_SHOWN} more malformed rows")
    if count > allowed * file.rows:
        raise UserError(
            f"{count} of the {file.rows} rows of {path} are malformed, the first at {str(file.malformed[0]).rstrip('.')}; "
            "mend them, or skip them with --config.allow_malformed=True (or a share, such as 0.05)."
        )
    if not file.trajectories:
        raise UserError(f"{path} holds no conversation to learn from: all of its {file.rows} rows are malformed.")
    return file


def allowed_share(setting: str) -> float:
    """`config.allow_malformed` as a share: "True" is all rows, "False" none. Raises `UserError` for anything but these and a number in [0, 1]."""
    words = {"true": 1.0, "false": 0.0}
    try:
        share = words[setting.lower()] if setting.lower() in words else float(setting)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UserError(f"allow_malformed is {setting!r}: give True, or the share of rows that may be malformed, such as 0.05.")
    return share


def fingerprint(path: str) -> str:
    """SHA-256 of a file: a run is continued only on what it began with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def texts(file: PublishedFile) -> Iterator[str]:
    """Everything that is read and said, for a model that needs a tokenizer of its own."""
    for trajectory in file.trajectories:
        yield from (message["content"] for message in trajectory.extra["messages"])
        for turn, reply in zip(trajectory.turns, trajectory.extra["replies"], strict=True):
            yield from (turn.strategy, reply)


# --- length ---------------------------------------------------------------------------------------------------------------------------------


def with_tokens(
    trajectories: list[Trajectory], conversation: ConversationFormat, *, max_length: int, overlong: str
) -> tuple[list[Trajectory], Cut]:
    """Trajectories with tokens, of each of which at least one turn fits into `max_length` tokens; and what that cost.

    `overlong`: "drop" (whole turns at the end are left to `batch`, which drops and counts them in every pass) or "split".
    """
    if overlong not in OVERLONG:
        raise UserError(f"learn.overlong is {overlong!r}: choose one of {', '.join(OVERLONG)}.")
    ready, cut = [], Cut()
    for trajectory in trajectories:
        conversation.fill_tokens(trajectory)
        fitting = turns_that_fit(trajectory, max_length)
        if fitting == len(trajectory.turns):
            ready.append(trajectory)
            continue
        cut.longer += 1
        if overlong == "split":
            parts = split(trajectory, conversation, max_length)
            cut.parts += len(parts)
            fitting = sum(len(part.turns) for part in parts)
        else:
            parts = [trajectory] if fitting else []
        cut.dropped_turns += len(trajectory.turns) - fitting
        cut.left_out += not parts
        ready += parts
    return ready, cut


def split(trajectory: Trajectory, conversation: ConversationFormat, max_length: int) -> list[Trajectory]:
    """A conversation as several of at most `max_length` tokens, with tokens; together they hold every turn that fits by itself.

    Each part begins with the opening messages and goes on as long as whole turns fit. What stood between is not repeated: the human message
    before a later part's first turn is joined to the last of the opening. The loss divides by a part's turns where it would divide
    by those of the conversation, so advantages are scaled by their ratio: a turn weighs A_t / (T_i k_t) with the conversation's T_i.
    """
    opening, replies, turns = trajectory.extra["messages"], trajectory.extra["replies"], trajectory.turns
    parts: list[Trajectory] = []
    if len(conversation.start(opening)) >= max_length:
        return parts
    start = 0
    while start < len(turns):
        end = min(len(turns), start + max_length // 2)  # a turn has two tokens at least, one read and one said
        last = opening[-1] if start == 0 else opening[-1] | {"content": as_one(opening[-1]["content"], replies[start - 1])}
        part = dataclasses.replace(
            trajectory,
            turns=[dataclasses.replace(turn) for turn in turns[start:end]],
            extra={"messages": [*opening[:-1], last], "replies": replies[start:end]},
        )
        conversation.fill_tokens(part)
        fitting = turns_that_fit(part, max_length)
        if fitting:
            del part.turns[fitting:], part.extra["replies"][fitting:]
            for turn in part.turns:
                turn.advantage *= fitting / len(turns)
            parts.append(part)
        start += max(1, fitting)  # a turn that does not fit by itself is dropped
    return parts


def say_cut(cut: Cut, max_length: int, overlong: str) -> None:
    """One line on conversations that are too long; nothing where none is."""
    if not cut.longer:
        return
    became = f"split into {cut.parts} parts, " if overlong == "split" else ""
    say(
        f"{cut.longer} conversations are longer than {max_length} tokens: {became}{cut.dropped_turns} whole turns dropped, "
        f"{cut.left_out} conversations left out because not one turn fits"
    )

