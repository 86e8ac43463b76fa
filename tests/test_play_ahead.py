"""Rounds that are played while the one before is learned from: with which weights, that it is the same when stopped, and what it refuses."""

from __future__ import annotations

import threading

import pytest

from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.model.fingerprint import fingerprint
from epo_jax.play_ahead import meanwhile
from epo_jax.rollout.actors import LiteralActor
from epo_jax.strategist import from_checkpoint
from epo_jax.train import Run
from epo_jax.trajectory import read_jsonl
from tests.test_self_play import StopIn
from tests.tiny_run import tiny

AHEAD = {"async_rounds": 1, "rounds": 3, "evaluate.every": 3, "learn.clip_low": 0.2, "learn.clip_high": 0.2, "learn.epochs": 2}


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """Three rounds of two epochs, and what stood in the learner when each began."""
    run = Run(tiny(tmp_path_factory.mktemp("ahead") / "run", **AHEAD), StopRequest())
    run.everything()
    return run


@pytest.mark.slow
def test_a_round_is_played_with_the_weights_that_the_one_before_began_with(ahead):
    versions = [{one.weights_version for one in read_jsonl(ahead.folder.trajectories(round))} for round in range(3)]
    assert versions == [{"step-0"}, {"step-0"}, {"step-4"}]  # 16 episodes in 2 steps, twice
    assert [{one.round for one in read_jsonl(ahead.folder.trajectories(round))} for round in range(3)] == [{0}, {1}, {2}]
    assert ahead.learner.position.steps_before == 12


@pytest.mark.slow
def test_what_was_stopped_at_any_moment_ends_with_the_same_weights(ahead, tmp_path):
    expected = fingerprint(ahead.learner.state.params)
    config = tiny(tmp_path / "run", **AHEAD)
    stops = 0
    for count in (30, 5, 6, 7):  # looks at the request: the first comes while the second round is played ahead, the others soon after they begin
        try:
            Run(config, StopIn(count)).everything()
        except Stopped:
            stops += 1
    run = Run(config, StopRequest())
    run.everything()
    assert stops >= 3 and fingerprint(run.learner.state.params) == expected
    assert expected != fingerprint(from_checkpoint(str(ahead.folder.path / "opponents" / "round-0")).params)


@pytest.mark.slow
def test_an_actor_that_fails_for_all_while_learning_loses_nothing_that_was_learned(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", **AHEAD)
    run, act = Run(config, StopRequest()), LiteralActor.act

    async def spent(self, observation, *, strategy, admissible):
        if threading.current_thread() is not threading.main_thread():
            raise UserError("the budget is spent")
        return await act(self, observation, strategy=strategy, admissible=admissible)

    monkeypatch.setattr(LiteralActor, "act", spent)
    with pytest.raises(UserError, match="the budget is spent"):
        run.everything()
    again = Run(config, StopRequest())
    assert (again.learner.position.round, again.learner.position.steps) == (0, 4)


class CalledOff(StopRequest):
    """As where several processes play: what cannot go on at one of them ends the others' work, and the steps."""

    def call_off(self):
        self.requested = True


@pytest.mark.slow
def test_what_called_the_others_off_is_what_the_run_ends_with(tmp_path, monkeypatch):
    async def spent(self, observation, *, strategy, admissible):
        raise UserError("the budget is spent")

    run = Run(tiny(tmp_path / "run", **AHEAD), CalledOff())
    take_steps = run.learn

    def learn(*arguments):
        monkeypatch.setattr(LiteralActor, "act", spent)
        take_steps(*arguments)

    run.learn = learn
    with pytest.raises(UserError, match="the budget is spent"):
        run.everything()
    assert Run(tiny(tmp_path / "run", **AHEAD), StopRequest()).learner.position.round == 0


def test_the_body_is_told_of_first_and_the_play_is_ended():
    asked = threading.Event()

    def play(should_stop):
        while not should_stop():
            asked.set()

    with pytest.raises(KeyError), meanwhile(play):
        assert asked.wait(10)
        raise KeyError("body")


@pytest.mark.parametrize("changes, words", [({"learn.clip_low": 0.0}, "set learn.clip_low"), ({"async_rounds": 2}, "async_rounds is 2")])
def test_what_makes_no_sense_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        Run(tiny(tmp_path / "run", **(AHEAD | changes)), StopRequest())
