"""Which episodes a process plays and has judged. Afterwards every process has all of them, in the order in which one process alone would.

A process that plays appends to a file of its own beside the round's. Whoever starts again, with another number of processes too, finds what
all of them had played by then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from epo_jax.errors import UserError
from epo_jax.hosts import exchange
from epo_jax.rollout.keep import already_played
from epo_jax.rollout.play import Episode, place
from epo_jax.trajectory import Trajectory, append_jsonl, encode_line, read_jsonl, write_jsonl

T = TypeVar("T")


def of(items: Sequence[T]) -> Sequence[T]:
    """This process's share of what all have alike."""
    return items[exchange.index() :: exchange.count()]


def begin(path: Path, episodes: Sequence[Episode], weights_version: str, *, learning: bool) -> tuple[Path, Sequence[Episode]]:
    """(the file that this process plays into, which of `episodes` it plays). What `path` and the processes' files hold already is played by nobody."""
    if exchange.count() == 1:
        return path, episodes

    def collect() -> list[int]:
        for part in _parts(path):
            append_jsonl(path, read_jsonl(part))
            part.unlink()
        kept = already_played(path, episodes, weights_version, learning=learning)
        write_jsonl(path, kept)
        return [trajectory.extra["index"] for trajectory in kept]

    held = set(exchange.by_first(collect))
    return _part(path, exchange.index()), of([episode for episode in episodes if episode.index not in held])


def end(path: Path, mine: Iterable[Trajectory], trouble: UserError | None, stop: bool) -> tuple[list[Trajectory], bool]:
    """(every process's trajectories and what was kept before, in order; whether any process was asked to stop); the first one writes them to `path`.

    trouble: what this process could not go on for. What all have played by then is written, and then it is raised at every process.
    """
    if exchange.count() == 1:
        if trouble is not None:
            raise trouble
        return sorted(mine, key=place), stop
    mine = list(mine)
    if exchange.first() and path.exists():
        mine = [*read_jsonl(path), *mine]
    return _together(path, mine, trouble, stop)


def judged(path: Path, trajectories: list[Trajectory], trouble: UserError | None, stop: bool) -> bool:
    """Of several processes: replaces `trajectories` by what every process has of its share (`of`), judged or not; the first one writes them to `path`.

    Returns whether any process was asked to stop; `trouble` is as in `end`.
    """
    if exchange.count() == 1:
        if trouble is not None:
            raise trouble
        return stop
    trajectories[:], stop = _together(path, of(trajectories), trouble, stop)
    return stop


def _together(path: Path, mine: Iterable[Trajectory], trouble: UserError | None, stop: bool) -> tuple[list[Trajectory], bool]:
    states = exchange.gather_json({"stop": stop, "trouble": None if trouble is None else str(trouble)})
    lines = [line for part in exchange.gather(b"".join(map(encode_line, mine))) for line in part.splitlines()]
    found = sorted((Trajectory.from_dict(json.loads(line)) for line in lines), key=place)

    def write() -> None:
        write_jsonl(path, found)
        for part in _parts(path):
            part.unlink()

    exchange.by_first(write)
    for process, state in enumerate(states):
        if state["trouble"] is not None:
            raise UserError(f"process {process} of {exchange.count()}: {state['trouble']}") from trouble
    return found, any(state["stop"] for state in states)


def as_one(figures: dict[str, float]) -> dict[str, float]:
    """Every process's figures as one: counts and rates are added up, of seconds the longest counts, of shares the mean of those that are known."""
    every = exchange.gather_json(figures)

    def combined(name: str, values: list[float]) -> float:
        if name.startswith("seconds"):
            return max(values)
        if name.endswith("_share"):
            known = [value for value in values if not math.isnan(value)]
            return sum(known) / len(known) if known else math.nan
        return sum(values)

    return {name: combined(name, [each[name] for each in every if name in each]) for name in figures}


def _part(path: Path, process: int) -> Path:
    return path.with_name(f".{path.stem}.process_{process}.jsonl")


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{path.stem}.process_*.jsonl"))
