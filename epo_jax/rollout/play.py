"""Plays episodes: strategist ↔ actor ↔ environment, many at once.

Each episode is one coroutine; all of them share one engine, which batches whatever is waiting. An episode depends on its
task, its seed and the weights alone, never on its neighbours, so a round that was cut off can be completed later.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from epo_jax.errors import UserError
from epo_jax.generate.engine import ContextFull, Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout.actors import Actor
from epo_jax.rollout.exchange import is_admissible
from epo_jax.rollout.tasks import TaskSet, dealt
from epo_jax.trajectory import Trajectory, Turn


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode to be played: a task of a task set; `index` is its place in the round, `seed` feeds the strategist's sampling."""

    index: int
    task_set: TaskSet
    task: Any
    seed: int


@dataclasses.dataclass(frozen=True)
class Player:
    """Everything that the episodes of a phase share."""

    engine: Engine
    conversation: ConversationFormat
    actor: Actor
    sampling: Sampling
    round: int
    weights_version: str

    async def play(self, episode: Episode) -> Trajectory:
        """Plays one episode to its end. A failing actor masks the trajectory; it never becomes a score of zero.

        Raises `UserError` where the actor says that no episode can be played (a spent budget, a wrong key).
        """
        task_set = episode.task_set
        environment = task_set.make()
        observation = environment.reset(episode.task)
        opening = task_set.prompts.opening(observation)
        trajectory = Trajectory(
            environment=task_set.environment,
            task_id=environment.task_id,
            first_observation=observation,
            end="max_turns",
            round=self.round,
            weights_version=self.weights_version,
            actor=self.actor.name,
            seed=episode.seed,
            temperature=self.sampling.temperature,
            start_progress=environment.progress(),
            extra={"index": episode.index, "messages": opening, "replies": [], "illegal_actions": 0},
        )
        if environment.task_type is not None:
            trajectory.extra["task_type"] = environment.task_type
        session = self.engine.open(episode.seed)
        acting = self.actor.begin(task_set.environment, episode.seed)
        try:
            prompt_tokens = self.conversation.start(opening)
            while len(trajectory.turns) < task_set.max_turns:
                try:
                    sampled = await self.engine.generate(session, prompt_tokens, self.sampling)
                except ContextFull:
                    trajectory.end = "context"
                    break
                strategy = self.conversation.text(sampled.tokens)
                admissible = environment.admissible
                try:
                    action = await acting.act(observation, strategy=strategy, admissible=admissible)
                except ContextFull:  # the actor's own
                    trajectory.end = "context"
                    break
                except UserError:  # what would fail every episode alike stops the run
                    raise
                except Exception as error:  # the actor may be any program or server: whatever it raises masks this episode
                    trajectory.masked = f"actor failed: {type(error).__name__}: {error}"
                    trajectory.end = f"error: {type(error).__name__}"
                    break
                trajectory.extra["illegal_actions"] += not is_admissible(action, admissible)
                observation, reward, done, info = environment.step(action)
                trajectory.turns.append(
                    Turn(
                        prompt_tokens=prompt_tokens,
                        tokens=sampled.tokens,
                        logprobs=sampled.logprobs,
                        stop_reason=sampled.stop_reason,
                        strategy=strategy,
                        action=action,
                        observation=observation,
                        reward=reward,
                        progress=environment.progress(),
                    )
                )
                reply = task_set.prompts.after(action, observation)
                trajectory.extra["replies"].append(reply)
                trajectory.success, trajectory.outcome = bool(info["success"]), environment.outcome
                if "bought" in info:
                    trajectory.extra["bought"] = bool(info["bought"])
                if done:
                    trajectory.end = "done"
                    break
                prompt_tokens = self.conversation.reply_and_continue(sampled.tokens, reply)
        finally:
            self.engine.close(session)
            acting.close()
        return trajectory


async def play_episodes(
    player: Player,
    episodes: Iterable[Episode],
    *,
    at_once: int,
    on_finish: Callable[[Trajectory], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Trajectory]:
    """Plays `episodes`, at most `at_once` at a time; returns those that finished, in order of their index.

    `on_finish` is called with each trajectory as it ends. When `should_stop()` turns true, or an episode raises, unfinished ones are dropped.
    """
    waiting = iter(episodes)
    running: set[asyncio.Task[Trajectory]] = set()
    finished: list[Trajectory] = []
    try:
        while not should_stop():
            while len(running) < at_once and (episode := next(waiting, None)) is not None:
                running.add(asyncio.create_task(player.play(episode)))
            if not running:
                break
            # The timeout only bounds how long a request to stop goes unseen.
            done, running = await asyncio.wait(running, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: task.exception() is not None):  # what is finished is kept even when one raises
                finished.append(task.result())
                on_finish(finished[-1])
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return sorted(finished, key=lambda trajectory: trajectory.extra["index"])


def episodes_of_round(task_sets: Sequence[TaskSet], *, count: int, seed: int, round: int, group_size: int = 1) -> list[Episode]:
    """The episodes of a round: every task set's share, its tasks in an order that depends on (seed, round) alone (tasks.dealt).

    Each task is played `group_size` times in a row, by episodes of different seeds.
    """
    return [Episode(index, *dealt(task_sets, index // group_size, (seed, round)), episode_seed(seed, round, index)) for index in range(count)]


def episodes_of_evaluation(task_sets: Sequence[TaskSet], repeats: int = 1) -> list[Episode]:
    """All held-out tasks, then all of them again for every further repeat; a seed depends on the task and the repeat alone."""
    held_out = [(repeat, task_set, task) for repeat in range(repeats) for task_set in task_sets for task in task_set.held_out]
    return [
        Episode(index, task_set, task, episode_seed("evaluation", task_set.environment, task.id, *([repeat] if repeat else [])))
        for index, (repeat, task_set, task) in enumerate(held_out)
    ]


def episode_seed(*parts: int | str) -> int:
    """A 31-bit seed from any parts: equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
