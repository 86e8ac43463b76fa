"""The main command where there are two seats: who met whom and with which weights, what is kept, the paper's four comparisons, refusals."""

from __future__ import annotations


import pytest

from epo_jax import partners, self_play
from epo_jax.errors import UserError
from epo_jax.evaluate.folder import EvaluationFolder
from epo_jax.evaluate.run import Evaluation, Options
from epo_jax.evaluate.several import evaluate_several
from epo_jax.evaluation import estimate, paired_difference, values_of
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.model.fingerprint import fingerprint
from epo_jax.strategist import from_checkpoint
from epo_jax.train import Run
from epo_jax.trajectory import read_jsonl
from tests.tiny_run import metrics, tiny

OPPONENTS = {
    "environments.alfworld.share": 0.0,
    "environments.webshop.share": 0.0,
    "environments.sotopia.share": 1.0,
    "environments.sotopia.max_turns": 4,
    "self_play.opponents.self": 1.0,
    "self_play.opponents.scripted": 1.0,
    "self_play.opponents.untrained": 1.0,
    "self_play.opponents.earlier": 1.0,
    "self_play.opponents.react": 1.0,
    "self_play.memory": 1,
    "rounds": 4,
    "compilation_cache": "none",
    "evaluate.every": 4,
    "evaluate.tasks": 6,
}


def config_of(folder, **changes):
    return tiny(folder, **(OPPONENTS | changes))


class StopIn(StopRequest):
    """A request to stop that comes when the run has asked `count` times whether there is one."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0

    @requested.setter
    def requested(self, value):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four rounds against everybody, and the weights that each round began with."""
    run = Run(config_of(tmp_path_factory.mktemp("self_play") / "run"), StopRequest())
    weights, remember = {}, run.opponents.remember

    def noted(round, params):
        weights[round] = fingerprint(params)
        remember(round, params)

    run.opponents.remember = noted
    run.everything()
    return run, weights


def played(run):
    return [trajectory for round in range(4) for trajectory in read_jsonl(run.folder.trajectories(round))]


def test_who_met_whom_and_with_which_weights(whole):
    run, _ = whole
    trajectories = played(run)
    met = {trajectory.extra["partner"]["strategist"] for trajectory in trajectories}
    # memory 1: in the third round, "earlier" is the second; in the second, it is the first, as "untrained" is.
    assert {"self", "scripted", "react", "round 0"} <= met and met <= {"self", "scripted", "react", "round 0", "round 1", "round 2"}
    assert met & {"round 1", "round 2"}
    for trajectory in trajectories:
        partner = trajectory.extra["partner"]
        if partner["strategist"] == "self":
            assert partner["weights"] == trajectory.weights_version
        other = [one for one in trajectories if one.round == trajectory.round and one.extra["index"] == trajectory.extra["index"]]
        assert len(other) == (2 if partner["strategist"] == "self" else 1)
    assert all(turn.advantage is not None for trajectory in trajectories for turn in trajectory.turns)


def test_the_weights_that_are_kept_are_those_that_the_round_began_with(whole):
    run, weights = whole
    kept = sorted(path.name for path in (run.folder.path / "opponents").iterdir())
    assert kept == ["round-0", "round-2", "round-3", "round-4"]  # the first, and as far as the memory of a fourth and of a fifth would reach
    for name in kept:
        found = from_checkpoint(str(run.folder.path / "opponents" / name))
        assert fingerprint(found.params) == weights[int(name.removeprefix("round-"))]
    assert len(set(weights.values())) == 5  # every round learned


def test_learning_took_the_steps_that_were_planned(whole):
    run, _ = whole
    assert len(metrics(run.folder.path, "step")) == run.learner._totals["rounds"]


@pytest.mark.slow
def test_a_run_that_was_stopped_while_playing_meets_the_same_opponents(whole, tmp_path):
    run, weights = whole
    config = config_of(tmp_path / "run")
    with pytest.raises(Stopped):
        Run(config, StopIn(40)).everything()
    again = Run(config, StopRequest())
    again.everything()
    assert fingerprint(again.learner.state.params) == fingerprint(run.learner.state.params)


def test_the_four_comparisons_are_one_table(whole, tmp_path, capsys):
    run, weights = whole
    config = config_of(tmp_path, **{"compare.strategists": ("none", "react", "vanilla", "trained"), "compare.checkpoint": str(run.folder.path)})
    options = Options(tasks=8, output=str(tmp_path / "table"))
    rows = evaluate_several(config, options, StopRequest())
    assert {row["strategist"] for row in rows} == {"none", "react", "vanilla", "trained"}
    folders = {mode: EvaluationFolder.of_results(tmp_path / "table" / mode) for mode in ("none", "vanilla", "trained")}
    assert folders["vanilla"].what["strategist"]["weights"] != folders["trained"].what["strategist"]["weights"]
    assert folders["vanilla"].what["strategist"]["name"].endswith("opponents/round-0")
    values = {mode: values_of(folder.read_episodes(), "sotopia", "goal") for mode, folder in folders.items()}
    row = next(row for row in rows if (row["strategist"], row["figure"]) == ("trained", "goal"))
    assert row["mean"] == estimate(list(values["trained"].values())).mean
    assert row["difference"] == paired_difference(values["none"], values["trained"]).mean and row["against"] == "none"
    shown = capsys.readouterr().out
    assert "against none" in shown and "the other seat scripted" in shown
    assert evaluate_several(config, options, StopRequest()) == rows  # nothing is played again


@pytest.mark.parametrize("partner", ["self", "untrained", "none"])
def test_an_evaluation_can_have_anybody_at_the_other_seat(whole, tmp_path, partner):
    run, _ = whole
    evaluation = Evaluation(config_of(tmp_path), Options("trained", str(run.folder.path), tasks=6, output=str(tmp_path / "out"), partner=partner), StopRequest())
    evaluation.everything()
    trajectories = evaluation.folder.read_episodes()
    assert len(trajectories) == 6 if partner != "self" else len(trajectories) > 6
    assert {one.extra["partner"]["strategist"] for one in trajectories} == {partner}
    assert evaluation.what["partner"]["name"] == partner


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"self_play.opponents.self": -1.0}, "self_play.opponents.self is -1.0"),
        ({"self_play.memory": 0}, "self_play.memory is 0"),
        ({"self_play.evaluate": "earlier"}, "self_play.evaluate is 'earlier'"),
        ({"self_play.evaluate": "grandmaster"}, "choose one of"),
        ({"environments.sotopia.max_words": -1}, "max_words is -1"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        Run(config_of(tmp_path / "run", **changes), StopRequest())
    assert not (tmp_path / "run").exists()


def test_an_actor_that_only_carries_words_out_cannot_play_a_household_alone(tmp_path):
    config = config_of(tmp_path)
    needs = partners.ACTORS["literal"].needs_strategy
    self_play.check(config, ["sotopia"], needs)
    with pytest.raises(UserError, match="in alfworld the actor literal"):
        self_play.check(config, ["sotopia", "alfworld"], needs)
