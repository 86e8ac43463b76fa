"""The published conversation format: the training data of the original pipeline, read into trajectories and written from them.

    [{"conversations": [{"from": "human" | "gpt", "value": ..., "score": "0.97"}, ...]}, ...]

`score` stands on strategist ("gpt") messages only and is the finished advantage. A row begins with a human message, and no strategist
message follows another. A strategist message before the first that has a score (the "OK" that acknowledges the worked example) belongs to the
opening: it is read, and never trained on.

A file comes from anywhere. It is read row by row, so that its size costs no memory beyond what it says, and a row that is not of this
form is listed with its line and left out. Only where the text is no JSON at all can no later row be found, and reading ends with an error.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from epo_jax.errors import UserError
from epo_jax.trajectory import ACKNOWLEDGEMENT, Trajectory, Turn

READ_AT_ONCE = 1 << 20  # characters
LONGEST_ROW = 1 << 25  # characters; no conversation is near it, and a file with a lost bracket must not fill the memory


class Malformed(NamedTuple):
    """A row that is left out: the line of the file that it begins on and its place in the list, both from 1, and what is wrong with it."""

    line: int
    row: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line} (row {self.row}): {self.why}"


@dataclasses.dataclass
class PublishedFile:
    """What a file held: `rows` in all, those that are conversations as trajectories, and the others."""

    trajectories: list[Trajectory] = dataclasses.field(default_factory=list)
    malformed: list[Malformed] = dataclasses.field(default_factory=list)
    rows: int = 0


# --- one conversation -----------------------------------------------------------------------------------------------------------------------


def to_published(trajectory: Trajectory) -> dict[str, Any]:
    """One conversation in the published format; a turn without an advantage has no `score`.

    The messages are those that the strategist read and wrote. `extra["messages"]` (a list of `{"role", "content"}`: the prompt that opened the
    conversation) stands first if the player kept it; else the first observation does. The message after a turn is `extra["replies"][i]` if the
    player kept it (one a turn, "" for none at the end), else the observation. Tokens and log-probabilities have no place in this format.

    A trajectory that `from_published` read, and whose strategies and advantages nobody has changed, is written as it was read.
    """
    record = trajectory.extra.get("record")
    if record is not None and _spoken(from_published(record)) == _spoken(trajectory):
        return record
    opening = trajectory.extra.get("messages") or [{"role": "user", "content": trajectory.first_observation}]
    replies = trajectory.extra.get("replies")
    if replies is None:
        replies = [turn.observation for turn in trajectory.turns[:-1]] + [""] * bool(trajectory.turns)
    messages: list[dict[str, str]] = []

    def say(speaker: str, value: str, **more: str) -> None:
        if speaker == "human" and messages and messages[-1]["from"] == "human":
            messages[-1]["value"] += "\n\n" + value  # a system prompt becomes part of the first human message
        else:
            messages.append({"from": speaker, "value": value, **more})

    for message in opening:
        say("gpt" if message["role"] == "assistant" else "human", message["content"])
    for index, (turn, reply) in enumerate(zip(trajectory.turns, replies, strict=True)):
        say("gpt", turn.strategy, **({} if turn.advantage is None else {"score": repr(float(turn.advantage))}))
        if reply or index + 1 < len(trajectory.turns):
            say("human", reply)
    return {"conversations": messages}


def from_published(record: Any, *, environment: str = "published", task_id: str = "") -> Trajectory:
    """A trajectory from one published conversation: text and advantages; tokens stay empty (a tokenizer fills them in for training).

    Strategist messages before the first that has a `score` belong to the opening and are not trained on; if no message has a score, only a
    leading "OK" is. A later strategist message without a score gets advantage 0.0, so that T_i still counts it. Human messages in a row
    are read as one. The opening is kept in `extra["messages"]`, the human messages that follow each turn in `extra["replies"]`; and where
    these would not be written again as they were read (a score written "1", a field that means nothing here), the row is in `extra["record"]`.

    Raises `UserError` for a row that is not of the published form.
    """
    messages = _checked_messages(record)
    scores = [message_score(message) for message in messages]
    spoken = [index for index, message in enumerate(messages) if message["from"] == "gpt"]
    scored = [index for index in spoken if scores[index] is not None]
    if scored:
        first = scored[0]
    else:
        candidates = [index for index in spoken if messages[index]["value"].strip().rstrip(".!").upper() != ACKNOWLEDGEMENT]
        first = candidates[0] if candidates else len(messages)
    opening: list[dict[str, str]] = []
    for message in messages[:first]:
        role = "assistant" if message["from"] == "gpt" else "user"
        if opening and opening[-1]["role"] == role:
            opening[-1]["content"] = as_one(opening[-1]["content"], message["value"])
        else:
            opening.append({"role": role, "content": message["value"]})
    turns: list[Turn] = []
    replies: list[str] = []
    for message, score in zip(messages[first:], scores[first:], strict=True):
        if message["from"] == "gpt":
            turns.append(Turn(strategy=message["value"], advantage=(0.0 if score is None else score) if scored else None))
            replies.append("")
        else:
            replies[-1] = turns[-1].observation = as_one(replies[-1], message["value"])
    trajectory = Trajectory(
        environment=environment,
        task_id=task_id,
        turns=turns,
        first_observation=opening[-1]["content"] if opening else "",
        extra={"messages": opening, "replies": replies},
    )
    if to_published(trajectory) != record:
        trajectory.extra["record"] = record
    return trajectory


def message_score(message: dict[str, Any]) -> float | None:
    """The advantage on a published message, or None. Raises `UserError` if it is not a finite number."""
    written = message.get("score")
    if written is None or written == "":
        return None
    try:
        score = math.nan if isinstance(written, bool) else float(written)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"a message's score is {_short(written)}: give a number as a string, such as \"0.97\".")
    return score


def _checked_messages(record: Any) -> list[dict[str, Any]]:
    messages = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError("a published record has no list `conversations`: give {\"conversations\": [{\"from\", \"value\"}, ...]}.")
    before = "gpt"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("from") not in ("human", "gpt") or not isinstance(message.get("value"), str):
            raise UserError(f"message {number} is {_short(message)}: give \"from\" as \"human\" or \"gpt\" and \"value\" as a string.")
        if message["from"] == before == "gpt":
            raise UserError(f"message {number} is the strategist's (gpt) and no human message stands before it.")
        if message["from"] == "human" and message.get("score") not in (None, ""):
            raise UserError(f"message {number} is a human's and has a score: only strategist messages (gpt) have one.")
        before = message["from"]
    return messages


def _spoken(trajectory: Trajectory) -> list[tuple[str, float | None]]:
    return [(turn.strategy, turn.advantage) for turn in trajectory.turns]


def as_one(before: str, after: str) -> str:
    """Two human messages in a row, as one."""
    return "\n\n".join(filter(None, [before, after]))


def _short(value: Any) -> str:
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- files --------------------------------------------------------------------------------------------------------------------------------------


def write_published(path: str | os.PathLike[str], trajectories: Sequence[Trajectory]) -> None:
    """Write trajectories as one published JSON file in UTF-8, replacing it at once."""
    path = pathlib.Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "wb") as file:
                for index, trajectory in enumerate(trajectories):
                    row = json.dumps(to_published(trajectory), ensure_ascii=False, indent=2)
                    file.write(b"[\n" if index == 0 else b",\n")
                    # Half of a surrogate pair (an environment's broken bytes) has no UTF-8; a backslash escape is what JSON has for it.
                    file.write(row.encode("utf-8", "backslashreplace"))
                file.write(b"\n]\n" if trajectories else b"[]\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder.") from error


def read_published(path: str | os.PathLike[str], *, environment: str = "published", spoken: bool = False, scored: bool = False) -> PublishedFile:
    """All conversations of a published JSON file; task ids are their places in it, from 0.

    With `spoken` a row in which the strategist says nothing after the opening is malformed, with `scored` one without any score.

    Raises `UserError` for a file that cannot be read or is not a JSON list in UTF-8 (a byte order mark is allowed).
    """
    result = PublishedFile()
    for line, record in _rows(pathlib.Path(path)):
        result.rows += 1
        try:
            trajectory = from_published(record, environment=environment, task_id=str(result.rows - 1))
            if spoken and not trajectory.turns:
                raise UserError("no strategist message (gpt) follows its opening: there is nothing to learn.")
            if scored and all(turn.advantage is None for turn in trajectory.turns):
                raise UserError("no strategist message (gpt) has a score: there is nothing to learn.")
            result.trajectories.append(trajectory)
        except UserError as error:
            result.malformed.append(Malformed(line, result.rows, str(error)))
    return result


def _rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """(line, row) for each row of the file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _Rows(path, file)
    except OSError as error:
        raise UserError(f"cannot read conversations from {path}: {error.strerror or error}.") from error


class _Rows:
    """The elements of the JSON list in `file`, each with the line it begins on. Holds little more than one of them at a time."""

    def __init__(self, path: pathlib.Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._place = "", 0  # what is read of the file, and how much of it is used
        self._line = 1
        self._ended = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        opening = self._next_sign()
        if opening == "":
            raise UserError(f"{self._path} is empty: give a JSON list of conversations.")
        if opening != "[":
            what = "is not JSON" if opening not in '{"' else "does not hold a list of conversations"
            raise UserError(f"{self._path} {what}: give a JSON list of objects with `conversations`.")
        self._use(self._place + 1)
        if self._next_sign() == "]":
            self._use(self._place + 1)
        else:
            while True:
                self._next_sign()
                yield self._line, self._row()
                sign = self._next_sign()
                if sign not in (",", "]"):
                    raise self._broken("a comma or the end of the list is missing")
                self._use(self._place + 1)
                if sign == "]":
                    break
        if self._next_sign():
            raise self._broken("something follows the end of the list")

    def _row(self) -> Any:
        """The element that begins here. The more of it is missing, the more is read at a time, so that a long one is not parsed often."""
        while True:
            try:
                row, end = json.JSONDecoder().raw_decode(self._text, self._place)
                if end < len(self._text) or self._ended:  # else it may be a number that goes on
                    self._use(end)
                    return row
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                if self._ended:
                    self._line += self._text.count("\n", self._place, error.pos)
                    raise self._broken(error.msg) from None
            except ValueError as error:  # a number of thousands of digits
                raise self._broken(str(error)) from None
            if len(self._text) - self._place > LONGEST_ROW:
                raise self._broken(f"a row longer than {LONGEST_ROW:,} characters begins, or one that never ends")
            self._read(max(READ_AT_ONCE, len(self._text) - self._place))

    def _next_sign(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in " \t\r\n":
                    return self._text[self._place]
                self._use(self._place + 1)
            if self._ended:
                return ""
            self._read(READ_AT_ONCE)

    def _use(self, end: int) -> None:
        self._line += self._text.count("\n", self._place, end)
        self._place = end

    def _read(self, characters: int) -> None:
        try:
            more = self._file.read(characters)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path} is not UTF-8 text ({error.reason}): save it as UTF-8.") from None
        self._ended = not more
        self._text, self._place = self._text[self._place :] + more, 0

    def _broken(self, why: str) -> UserError:
        return UserError(f"{self._path} is not JSON from line {self._line} on ({why}): mend it or write the file again.")
