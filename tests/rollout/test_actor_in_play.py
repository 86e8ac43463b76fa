"""What an actor can do to an episode: outgrow its context, stop the run, name what is not possible, and be told that it is over."""

from __future__ import annotations

import asyncio

import pytest

from epo_jax.errors import UserError
from epo_jax.generate.engine import ContextFull, Sampling
from epo_jax.report.metrics import describe
from epo_jax.rollout.play import Player, play_episodes
from tests.test_faulty_round import Strategist, episodes  # noqa: F401  (a fixture)


class Actor:
    """Acts as `rule(seed, turn)` says; keeps what it saw."""

    name = "scripted"

    def __init__(self, rule):
        self.rule, self.saw, self.closed = rule, {}, 0

    def begin(self, environment, seed):
        assert environment == "alfworld"
        return Session(self, seed)


class Session:
    def __init__(self, actor, seed):
        self.actor, self.seed, self.seen, self.counts = actor, seed, actor.saw.setdefault(seed, []), {}

    async def act(self, observation, *, strategy, admissible):
        await asyncio.sleep(0)
        assert "look" in admissible and str(self.seed) in strategy
        self.seen.append(observation)
        said = self.actor.rule(self.seed, len(self.seen) - 1)
        if isinstance(said, Exception):
            raise said
        return said

    def close(self):
        self.actor.closed += 1


def play(actor, episodes, finished):  # noqa: F811
    strategist = Strategist()
    return asyncio.run(play_episodes(Player(strategist, strategist, actor, Sampling(), 0, "step-0"), episodes, at_once=4, on_finish=finished.extend))


def test_it_sees_the_task_and_then_what_followed_and_is_closed(episodes):  # noqa: F811
    actor = Actor(lambda seed, turn: "fly" if turn == 1 else "look")
    trajectories = play(actor, episodes[:6], [])
    for trajectory in trajectories:
        assert actor.saw[trajectory.seed] == [trajectory.first_observation, *(turn.observation for turn in trajectory.turns[:-1])]
        assert trajectory.turns[1].observation == "Nothing happens." and trajectory.extra["illegal_actions"] == 1
    assert actor.closed == 6 and describe(trajectories)["illegal_action_share"] == 0.25


def test_its_full_context_ends_the_episode_as_the_strategists_does(episodes):  # noqa: F811
    (trajectory,) = play(Actor(lambda seed, turn: ContextFull("no room") if turn == 2 else "look"), episodes[:1], [])
    assert (trajectory.end, len(trajectory.turns), trajectory.masked) == ("context", 2, None)


def test_what_would_fail_every_episode_stops_the_round_and_keeps_what_is_finished(episodes):  # noqa: F811
    actor, finished = Actor(lambda seed, turn: UserError("the budget is spent") if seed == 1005 else "look"), []
    with pytest.raises(UserError, match="budget is spent"):
        play(actor, episodes[:20], finished)
    assert 0 < len(finished) < 20 and all(trajectory.masked is None for trajectory in finished)
    assert actor.closed == len(actor.saw)  # also those that were under way
