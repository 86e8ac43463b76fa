"""Environments in worker processes: the same episodes as without, and what an environment's or a worker's end does."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

import envs
from epo_jax.errors import UserError
from epo_jax.rollout.environments import EnvironmentFailed, Here
from epo_jax.rollout.play import Episode, play_episodes
from epo_jax.rollout.workers import Workers
from tests.rollout.test_play import ScriptedEngine, player, task_set

LINES = ["Thought: look around.", "Thought: open the nearest door.", "Thought: search for what is wanted.", "Thought: click the first item."]


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as workers:
        yield workers


def episodes():
    """Of both environments, several at once in one worker."""
    sets = [task_set(max_turns=6), task_set(max_turns=6, environment="webshop")]
    tasks = [envs.make(each.environment).tasks("generated:eval")[:3] for each in sets]
    return [Episode(index, sets[index % 2], tasks[index % 2][index // 2], seed=index) for index in range(6)]


def played(environments, chosen=None, engine=None):
    with_environments = dataclasses.replace(player(engine or ScriptedEngine(LINES)), environments=environments)
    return asyncio.run(play_episodes(with_environments, chosen or episodes(), at_once=6, on_finish=lambda trajectories: None))


def test_episodes_are_the_same_with_and_without(workers):
    expected = played(Here())
    assert played(workers) == expected
    assert {len(trajectory.turns) for trajectory in expected} == {6}
    assert played(workers) == expected  # in another event loop, with workers that have played before
    assert all(not worker.running for worker in workers._workers)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_environment_that_raises_masks_its_episode_and_no_other(workers, where):
    whole = episodes()
    broken = [dataclasses.replace(episode, task=SimpleNamespace(id="generated:eval/0")) if episode.index == 2 else episode for episode in whole]
    found = played(Here() if where == "here" else workers, broken)
    assert [trajectory.masked is not None for trajectory in found] == [False, False, True, False, False, False]
    assert found[2].masked.startswith("environment failed: AttributeError: ") and found[2].task_id == "generated:eval/0"
    assert (found[2].end, found[2].turns) == ("error: EnvironmentFailed", [])


def test_what_a_person_can_mend_stops_the_run(workers):
    with pytest.raises(UserError, match="nowhere"):
        asyncio.run(workers.begin(task_set(), "nowhere/17"))


class Killer(ScriptedEngine):
    """Kills a worker when some strategist speaks for the second time: all episodes are under way then."""

    def __init__(self, worker):
        super().__init__(LINES)
        self._worker = worker

    async def generate(self, session, tokens, sampling):
        if session["turn"] == 1 and self._worker is not None:
            self._worker._process.kill()
            self._worker._process.wait()
            self._worker = None
        return await super().generate(session, tokens, sampling)


def test_a_worker_that_is_killed_masks_its_episodes_and_is_replaced(workers):
    expected = played(Here())
    played(workers)
    first = workers._workers[0]
    found = played(workers, engine=Killer(first))
    masked = [trajectory.masked for trajectory in found if trajectory.masked]
    assert len(found) == 6 and masked == ["environment failed: its worker process died: killed, or out of memory"] * 3
    assert played(workers) == expected and workers._workers[0] is not first


def test_a_dead_worker_fails_what_is_asked_of_it_and_nobody_is_left():
    with Workers(1) as pool:

        async def killed_between_steps():
            running = await pool.begin(task_set(), envs.make("alfworld").tasks("generated:eval")[0])
            assert (await running.step("look")).observation
            pool._workers[0]._process.kill()
            with pytest.raises(EnvironmentFailed, match="worker process died"):
                await running.step("look")
            running.close()
            return (await pool.begin(task_set(), envs.make("alfworld").tasks("generated:eval")[0])).view.observation

        assert asyncio.run(killed_between_steps())
        process = pool._workers[0]._process
    assert process.poll() == 0
