"""The record of one episode as one strategist saw it, and its file format (`published.py` has that of the original pipeline).

JSON Lines, one episode a line, read back unchanged (floats included). A line is written with one system call and ends with
a newline, so a process that is killed while appending can only leave one torn last line; `read_jsonl` drops that line and reports it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from epo_jax.errors import UserError

STOP_REASONS = ("stop", "length")
ACKNOWLEDGEMENT = "OK"  # the strategist side of the in-context opening: shown, never trained on


@dataclasses.dataclass
class Turn:
    """One strategist turn: what it newly read, what it sampled, and what came of it.

    `prompt_tokens` are only the prompt tokens that are new since the end of the previous turn's `tokens` (the first turn holds the whole
    start). `tokens` are as sampled, the stop token included if it was sampled; `logprobs` (natural logarithms, one a token) are those of the
    unmodified model distribution at the time of sampling.
    """

    prompt_tokens: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    strategy: str = ""
    action: str = ""
    observation: str = ""  # what followed the action
    reward: float = 0.0  # the environment's reward of this step
    progress: float | None = None  # after the action, in [0, 1]
    process_reward: float | None = None  # from the judge
    advantage: float | None = None  # from the credit estimator
    token_advantages: list[float] = dataclasses.field(default_factory=list)  # one a token, from an estimator that tells tokens apart (ppo)
    values: list[float] = dataclasses.field(default_factory=list)  # what a critic expected of the rest of the episode before each token
    stop_reason: str = "stop"  # "stop" | "length"


@dataclasses.dataclass
class Trajectory:
    """One episode: where it was played, its turns, how it ended, and its lineage.

    `outcome` is in [0, 1]. `end` is "done", "max_turns", "context" or "error: ...". `masked` says why the trajectory must not be trained on
    (a failed judge or actor call, for example); None where nothing failed.
    """

    environment: str
    task_id: str
    seat: str = "agent"
    turns: list[Turn] = dataclasses.field(default_factory=list)
    first_observation: str = ""
    outcome: float = 0.0
    success: bool = False
    end: str = "done"
    masked: str | None = None
    round: int = 0
    weights_version: str = ""
    actor: str = ""
    judge: str | None = None
    seed: int = 0
    temperature: float = 1.0
    start_progress: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        """The whole token stream: the turns' `prompt_tokens` and `tokens` in order."""
        stream: list[int] = []
        for turn in self.turns:
            stream += turn.prompt_tokens
            stream += turn.tokens
        return stream

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that `from_dict` reads back unchanged."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record["turns"] = [{field.name: getattr(turn, field.name) for field in _TURN_FIELDS} for turn in self.turns]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Trajectory:
        """The inverse of `to_dict`. Raises `UserError` for an unknown or missing field, or one of another kind."""
        if not isinstance(record, dict):
            raise UserError(f"a trajectory is not a JSON object but a {type(record).__name__}: give one object a line.")
        turns = record.get("turns", [])
        if not isinstance(turns, list):
            raise UserError("a trajectory's `turns` is not a list: give a list of turns.")
        rest = {name: value for name, value in record.items() if name != "turns"}
        return _build(cls, rest, turns=[_turn_from_dict(turn) for turn in turns])


def by_environment(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """Environment → its trajectories, in order; environments by name."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.environment, []).append(trajectory)
    return dict(sorted(groups.items()))


_TURN_FIELDS = dataclasses.fields(Turn)

# --- JSON Lines -----------------------------------------------------------------------------------------------------------------------------


class JsonLines(list[Trajectory]):
    """The trajectories of a file; `dropped` is the number of torn last lines that were left out (0 or 1)."""

    dropped: int = 0


def encode_line(trajectory: Trajectory) -> bytes:
    """One trajectory as one UTF-8 JSON line with its newline. Floats are written so that they read back bit for bit."""
    try:
        text = json.dumps(trajectory.to_dict(), ensure_ascii=True, separators=(",", ":"), default=_plain_number)
    except (TypeError, ValueError) as error:
        raise UserError(f"the trajectory of task {trajectory.task_id!r} cannot be written as JSON ({error}): keep plain numbers, strings, lists and dicts in it.") from error
    return text.encode() + b"\n"


def _plain_number(value: Any) -> Any:
    """NumPy and JAX scalars as Python numbers; anything else has no place in a record."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is in it")


def write_jsonl(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> None:
    """Write a whole file; it replaces `path` at once, so a reader never sees half of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(scratch, "wb") as file:
            for trajectory in trajectories:
                file.write(encode_line(trajectory))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room or choose another folder.") from error
    finally:
        scratch.unlink(missing_ok=True)


def append_jsonl(path: str | os.PathLike[str], trajectories: Trajectory | Iterable[Trajectory]) -> None:
    """Append to a file, one `write` call a line. A torn last line left by a killed process is cut off first. One writer at a time."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(trajectories, Trajectory):
        trajectories = [trajectories]
    lines = [encode_line(trajectory) for trajectory in trajectories]
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _end_of_whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            os.lseek(descriptor, end, os.SEEK_SET)
            for line in lines:
                try:
                    written = os.write(descriptor, line)
                    while written < len(line):  # a short write: a nearly full disk, or a signal
                        written += os.write(descriptor, line[written:])
                except OSError:
                    os.ftruncate(descriptor, end)
                    raise
                end += len(line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot append to {path}: {error.strerror or error}; make room or choose another folder.") from error


def read_jsonl(path: str | os.PathLike[str]) -> JsonLines:
    """All trajectories of a file, in order; `.dropped` counts a torn last line (no newline, written by a process that was killed).

    Raises `UserError` for a missing file and for a damaged line that is not the torn last one.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read trajectories from {path}: {error.strerror or error}.") from error
    lines = content.split(b"\n")
    result = JsonLines()
    if lines.pop():  # what stands after the last newline
        result.dropped = 1
    for number, line in enumerate(lines, start=1):
        try:
            result.append(Trajectory.from_dict(json.loads(line)))
        except (ValueError, UserError) as error:
            raise UserError(f"line {number} of {path} is not a trajectory ({error}): remove the line or write the file again.") from error
    return result


def _end_of_whole_lines(descriptor: int) -> int:
    """The offset in bytes after the last newline (0 for a file without one), searched from the end."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


# --- building from JSON -----------------------------------------------------------------------------------------------------------------------


def _turn_from_dict(record: Any) -> Turn:
    if not isinstance(record, dict):
        raise UserError(f"a turn is not a JSON object but a {type(record).__name__}.")
    turn = _build(Turn, record)
    if len(turn.logprobs) != len(turn.tokens) and turn.logprobs:
        raise UserError(f"a turn has {len(turn.tokens)} tokens but {len(turn.logprobs)} log-probabilities.")
    if turn.stop_reason not in STOP_REASONS:
        raise UserError(f"a turn's stop_reason is {turn.stop_reason!r}, not one of {', '.join(STOP_REASONS)}.")
    return turn


def _build(kind: type, record: dict[str, Any], **more: Any) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(record) - names)
    if unknown:
        raise UserError(f"a {kind.__name__.lower()} has the unknown field {unknown[0]!r}.")
    try:
        return kind(**record, **more)
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in record]
        raise UserError(f"a {kind.__name__.lower()} lacks the field {missing[0]!r}." if missing else str(error)) from error
