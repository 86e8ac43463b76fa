"""Episodes played into a file: each is kept as it ends, and one that the file already holds is not played again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from epo_jax.report.console import bar
from epo_jax.reward.judge import masked_by_judge
from epo_jax.rollout.play import Episode, Player, place, play_episodes
from epo_jax.trajectory import Trajectory, append_jsonl, read_jsonl, write_jsonl


def play_and_keep(
    title: str,
    player: Player,
    episodes: Sequence[Episode],
    path: Path,
    *,
    at_once: int,
    should_stop: Callable[[], bool],
    learning: bool = False,
    note: Callable[[], str] = lambda: "",
    quiet: bool = False,
) -> tuple[list[Trajectory], dict[str, float]]:
    """Plays what `path` does not hold of `episodes`, with a progress bar of this title, and appends each to it as it ends.

    Returns all of them in order of their index, those read back included, and the figures of what was played now. When `should_stop()` turns
    true, what has not ended is missing. `learning`: see `already_played`; `note`: more words for the progress bar; `quiet`: no bar.
    Raises `UserError` where the file is damaged or cannot be written.
    """
    kept = already_played(path, episodes, player.weights_version, learning=learning)
    played = {trajectory.extra["index"] for trajectory in kept}
    missing = [episode for episode in episodes if episode.index not in played]
    before, start = player.engine.stats, time.monotonic()
    write_jsonl(path, kept)
    with bar(title, len(episodes), quiet=quiet) as progress:
        progress.advance(amount=len(played))
        outcomes: list[tuple[float, bool]] = []

        def on_finish(trajectories: list[Trajectory]) -> None:
            append_jsonl(path, trajectories)
            outcomes.extend((trajectory.outcome, trajectory.success) for trajectory in trajectories)
            reward, success = np.mean(outcomes, axis=0)
            rate = (player.engine.stats["decode_tokens"] - before["decode_tokens"]) / max(progress.seconds, 1e-3)
            progress.advance("; ".join(filter(None, (f"reward {reward:.2f}, success {success:.0%}, {rate:.0f} tokens/s", note()))))

        fresh = asyncio.run(play_episodes(player, missing, at_once=at_once, on_finish=on_finish, should_stop=should_stop))
    after, seconds = player.engine.stats, time.monotonic() - start
    prompt = after["prompt_tokens"] - before["prompt_tokens"]
    figures = {
        "seconds_play": seconds,
        "episodes_per_second": len({trajectory.extra["index"] for trajectory in fresh}) / seconds,
        "play_tokens_per_second": (after["decode_tokens"] - before["decode_tokens"]) / seconds,
        "prefill_share": (after["prefill_tokens"] - before["prefill_tokens"]) / prompt if prompt else math.nan,
    }
    return sorted([*kept, *fresh], key=place), figures


def already_played(path: Path, episodes: Sequence[Episode], weights_version: str, *, learning: bool = False) -> list[Trajectory]:
    """What an interrupted start left of these episodes, played with these weights and without a fault.

    An episode of two seats is kept if both of its trajectories are there. One that only the judge failed on was played, and is judged again. Once
    the round's learning has begun, everything stays as it is.
    """
    if not path.exists():
        return []
    expected = {episode.index: episode for episode in episodes}
    found: dict[int, list[Trajectory]] = {}
    for trajectory in read_jsonl(path):
        episode = expected.get(trajectory.extra.get("index"))
        if episode is not None and episode.seed == trajectory.seed and trajectory.weights_version == weights_version:
            found.setdefault(episode.index, []).append(trajectory)
    kept = [
        trajectory
        for index, group in found.items()
        if learning or (len(group) == expected[index].trajectories and all(one.masked is None or masked_by_judge(one) for one in group))
        for trajectory in group
    ]
    if not learning:
        for trajectory in kept:
            trajectory.masked = None
    return kept
