"""Plays episodes: strategist ↔ actor ↔ environment, many at once.

Each episode is one coroutine; all of them share one engine, which batches whatever is waiting. An episode depends on its
task, its seed and the weights alone, never on its neighbours, so a round that was cut off can be completed later.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from epo_jax.generate.engine import Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.reward.evaluator import Evaluator
from epo_jax.rollout import two_seats
from epo_jax.rollout.actors import Actor
from epo_jax.rollout.environments import EnvironmentFailed, Environments, Here
from epo_jax.rollout.opponents import SCRIPTED, SELF
from epo_jax.rollout.seat import Adviser, Seat
from epo_jax.rollout.tasks import TaskSet, dealt
from epo_jax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode to be played: a task of a task set; `index` is its place in the round, `seed` feeds the strategist's sampling.

    opponent: who sits at the other seat, where the environment has two: SELF, SCRIPTED, or one of `Player.others` (opponents.py).
    """

    index: int
    task_set: TaskSet
    task: Any
    seed: int
    opponent: str = SCRIPTED

    @property
    def trajectories(self) -> int:
        """How many it yields: one for every seat that the player's strategist advises."""
        return 2 if self.task_set.two_seats and self.opponent == SELF else 1


@dataclasses.dataclass(frozen=True)
class Player:
    """Everything that the episodes of a phase share. others: who may sit at the other seat, by name; evaluator: scores conversations that no rule does;
    environments: where those of one seat run."""

    engine: Engine
    conversation: ConversationFormat
    actor: Actor
    sampling: Sampling
    round: int
    weights_version: str
    others: Mapping[str, Adviser] = dataclasses.field(default_factory=dict)
    evaluator: Evaluator | None = None
    environments: Environments = Here()

    @property
    def adviser(self) -> Adviser:
        """The strategist that plays, with its actor."""
        return Adviser(SELF, self.engine, self.conversation, self.actor, self.sampling, self.weights_version)

    async def play(self, episode: Episode) -> list[Trajectory]:
        """Plays one episode to its end: a trajectory for each seat that this player's strategist advises, in order.

        A failing actor or environment masks them; it never becomes a score of zero. Raises `UserError` where the actor says that no episode can be played
        (a spent budget, a wrong key), and where nothing would score the episode.
        """
        return await (two_seats.converse(self, episode) if episode.task_set.two_seats else self._play_alone(episode))

    async def _play_alone(self, episode: Episode) -> list[Trajectory]:
        """An episode of one seat."""
        running = seat = None
        try:
            running = await self.environments.begin(episode.task_set, episode.task)
            view = running.view
            trajectory = self.trajectory(episode, view.task_id, first_observation=view.observation, start_progress=view.progress)
            if view.task_type is not None:
                trajectory.extra["task_type"] = view.task_type
            seat = Seat(self.adviser, episode.task_set, trajectory, episode.seed)
            while seat.turns < episode.task_set.max_turns:
                action = await seat.act(view.admissible)
                if action is None:
                    break
                view = await running.step(action)
                seat.hear(view.observation, reward=view.reward, progress=view.progress)
                trajectory.success, trajectory.outcome = bool(view.info["success"]), view.outcome
                if "bought" in view.info:
                    trajectory.extra["bought"] = bool(view.info["bought"])
                if view.done:
                    trajectory.end = "done"
                    break
        except EnvironmentFailed as error:
            if seat is None:
                trajectory = self.trajectory(episode, episode.task.id, first_observation="", start_progress=None)
            trajectory.masked, trajectory.end = f"environment failed: {error}", "error: EnvironmentFailed"
        finally:
            if seat is not None:
                seat.close()
            if running is not None:
                running.close()
        return [trajectory]

    def trajectory(self, episode: Episode, task_id: str, *, first_observation: str, start_progress: float | None) -> Trajectory:
        """An episode's record before anything was done."""
        return Trajectory(
            environment=episode.task_set.environment,
            task_id=task_id,
            first_observation=first_observation,
            end="max_turns",
            round=self.round,
            seed=episode.seed,
            start_progress=start_progress,
            extra={"index": episode.index},
        )


async def play_episodes(
    player: Player,
    episodes: Iterable[Episode],
    *,
    at_once: int,
    on_finish: Callable[[list[Trajectory]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Trajectory]:
    """Plays `episodes`; returns the trajectories of those that finished, in order of their index.

    At most `at_once` trajectories are made at a time, as the engine has slots: a conversation that gave its slot up would be read again in other
    pieces, and what is sampled would depend on its neighbours in the last bits. `on_finish` is called with an episode's trajectories as it ends.
    When `should_stop()` turns true, or an episode raises, unfinished ones are dropped.
    """
    waiting = collections.deque(episodes)
    running: dict[asyncio.Task[list[Trajectory]], int] = {}
    finished: list[Trajectory] = []
    try:
        while not should_stop():
            while waiting and (not running or sum(running.values()) + waiting[0].trajectories <= at_once):
                episode = waiting.popleft()
                running[asyncio.create_task(player.play(episode))] = episode.trajectories
            if not running:
                break
            # The timeout only bounds how long a request to stop goes unseen.
            done, _ = await asyncio.wait(running, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: task.exception() is not None):  # what is finished is kept even when one raises
                del running[task]
                finished += task.result()
                on_finish(task.result())
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return sorted(finished, key=place)


def place(trajectory: Trajectory) -> tuple[int, str]:
    """Where a trajectory stands among a round's: by episode, then by seat."""
    return trajectory.extra["index"], trajectory.seat


def episodes_of_round(
    task_sets: Sequence[TaskSet], *, count: int, seed: int, round: int, group_size: int = 1, opponent: Callable[[int], str] = lambda index: SCRIPTED
) -> list[Episode]:
    """The episodes of a round: every task set's share, its tasks in an order that depends on (seed, round) alone (tasks.dealt).

    Each task is played `group_size` times in a row, by episodes of different seeds; `opponent(index)` says whom all of the index-th group meet.
    """
    return [
        Episode(index, *dealt(task_sets, index // group_size, (seed, round)), episode_seed(seed, round, index), opponent(index // group_size))
        for index in range(count)
    ]


def episodes_of_evaluation(task_sets: Sequence[TaskSet], repeats: int = 1, opponent: str = SCRIPTED) -> list[Episode]:
    """All held-out tasks, then all of them again for every further repeat; a seed depends on the task and the repeat alone.

    Against itself the strategist has both seats of a conversation: it is played once, whichever of its seats are among the tasks.
    """
    held_out = [
        (repeat, task_set, task)
        for repeat in range(repeats)
        for task_set in task_sets
        for task in (_conversations(task_set) if task_set.two_seats and opponent == SELF else task_set.held_out)
    ]
    return [
        Episode(index, task_set, task, episode_seed("evaluation", task_set.environment, task.id, *([repeat] if repeat else [])), opponent)
        for index, (repeat, task_set, task) in enumerate(held_out)
    ]


def _conversations(task_set: TaskSet) -> list[Any]:
    """One task of each combination among those held out."""
    return list({task.combination: task for task in reversed(task_set.held_out)}.values())[::-1]


def episode_seed(*parts: int | str) -> int:
    """A 31-bit seed from any parts: equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
