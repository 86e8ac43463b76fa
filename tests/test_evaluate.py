"""Evaluations with tiny strategists: what they leave, that they continue exactly, comparisons, and how they refuse."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.alfshop import get_config
from epo_jax import partners
from epo_jax import strategist as strategists
from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import UserError
from epo_jax.evaluate import compare
from epo_jax.evaluate.folder import EvaluationFolder, write_table
from epo_jax.evaluate.run import Evaluation, Options
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.mesh import make_mesh
from epo_jax.model import hf_weights, llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.fingerprint import fingerprint
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.strategist import MINI
from epo_jax.trajectory import Trajectory, Turn, read_jsonl, write_jsonl
from tests.tiny_run import StopAfter

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TINY = {
    "mesh.fsdp": 1,
    "mesh.data": -1,
    "environments.alfworld.max_turns": 3,
    "environments.webshop.max_turns": 2,
    "environments.alfworld.eval_split": "generated:eval",
    "environments.webshop.eval_split": "generated:eval",
    "rollout.slots": 8,
    "rollout.max_context": 512,
    "rollout.max_strategy_tokens": 6,
}


def tiny(**changes):
    config = get_config()
    config.update_from_flattened_dict(TINY | changes)
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights with the mini strategist's tokenizer: `one` and `two` as Hugging Face folders, `run` as a run's checkpoint 3 of `one`."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    model = LlamaConfig.from_hf(json.loads((MINI / "config.json").read_text()) | sizes)
    for seed, name in enumerate(("one", "two")):
        params = llama.init_params(model, jax.random.key(seed), dtype=jnp.float32)
        hf_weights.save(folder / name, model, params, MINI)
        if name == "one":
            Checkpoints(folder / "run" / "checkpoints").save(3, {"params": params}, {"model": model.to_hf(), "position": {"saves": 3}})
    Tokenizer.load(MINI).save(folder / "run" / "tokenizer")
    return folder


def evaluation(output, weights, stop=None, *, changes=None, **options):
    settings = {"checkpoint": str(weights / "one"), "tasks": 10, "repeats": 2, "output": str(output)} | options
    return Evaluation(tiny(**(changes or {})), Options(**settings), stop or StopRequest())


@pytest.fixture(scope="module")
def unbroken(weights, tmp_path_factory):
    """A whole evaluation of both environments, 10 tasks twice each, on a mesh of eight devices."""
    output = tmp_path_factory.mktemp("evaluation") / "one"
    evaluation(output, weights).everything()
    return output


def without_cost(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_figures_are_those_of_the_episodes(unbroken, weights):
    record = json.loads((unbroken / "results.json").read_text())
    with open(unbroken / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in record["rows"]] == table
    for environment, turns in (("alfworld", 3), ("webshop", 2)):
        episodes = read_jsonl(unbroken / "episodes" / f"{environment}.jsonl")
        assert [episode.extra["index"] for episode in episodes] == list(range(20))
        assert len({episode.seed for episode in episodes}) == 20 and len({episode.task_id for episode in episodes}) == 10
        rows = {row["figure"]: row for row in record["rows"] if row["environment"] == environment and row["task_type"] is None}
        assert set(rows) == {"success", "reward", "turns", "strategy_tokens"} | ({"bought"} if environment == "webshop" else set())
        assert rows["reward"]["mean"] == pytest.approx(np.mean([episode.outcome for episode in episodes]))
        assert rows["turns"]["mean"] == pytest.approx(np.mean([len(episode.turns) for episode in episodes]))
        assert all(len(episode.turns) <= turns for episode in episodes)
        for row in rows.values():
            assert (row["n"], row["episodes"], row["masked"], row["money"]) == (10, 20, 0, 0.0) and row["seconds"] > 0
            assert row["low"] <= row["mean"] <= row["high"]
            assert row["prompt_tokens"] + row["sampled_tokens"] == sum(len(episode.tokens) for episode in episodes)
            assert row["sampled_tokens"] == sum(len(turn.logprobs) for episode in episodes for turn in episode.turns) > 0
            assert (row["strategist"], row["mode"], row["actor"], row["split"]) == (str(weights / "one"), "trained", "literal", "generated:eval")
    kinds = [row for row in record["rows"] if row["task_type"] is not None and row["figure"] == "turns"]
    assert {row["environment"] for row in kinds} == {"alfworld"} and sum(row["n"] for row in kinds) == 10
    assert record["what"]["strategist"]["weights"] == fingerprint(strategists.from_checkpoint(str(weights / "one")).params)


def test_interrupted_anywhere_it_continues_to_the_same_episodes(unbroken, weights, tmp_path):
    output, played = tmp_path / "again", []
    while True:
        try:
            rows = evaluation(output, weights, StopAfter(3 + len(played))).everything()
            break
        except Stopped:
            assert not (output / "results.json").exists()
            files = list((output / "episodes").iterdir())
            played.append(sum(len(path.read_text().splitlines()) for path in files))
            for path in files:
                with open(path, "a") as file:
                    file.write('{"environment": "alfw')  # as a kill while writing leaves it
    assert len(played) >= 3 and played == sorted(played) and 0 < played[0] < 20
    for environment in ("alfworld", "webshop"):
        name = f"episodes/{environment}.jsonl"
        assert (output / name).read_bytes() == (unbroken / name).read_bytes()
    assert without_cost(rows) == without_cost(json.loads((unbroken / "results.json").read_text())["rows"])
    starts = EvaluationFolder.of_results(output).starts()
    assert len(starts) > 2
    assert without_cost(evaluation(output, weights).everything()) == without_cost(rows)
    assert EvaluationFolder.of_results(output).starts() == starts  # nothing was left to play


def test_a_runs_checkpoint_is_its_weights(weights):
    """Loaded whole on one device, and split over a mesh, they have the fingerprint of the same weights in another format."""
    one, run = (strategists.from_checkpoint(str(weights / name)) for name in ("one", "run"))
    assert (run.name, run.step, one.step) == ("run", 3, None) and run.config == one.config
    assert fingerprint(run.params) == fingerprint(one.params)
    split = strategists.from_checkpoint(str(weights / "run" / "checkpoints"), step=3, mesh=make_mesh({"fsdp": -1}))
    assert len(split.params["embed"].sharding.device_set) == 8
    assert fingerprint(split.params) == fingerprint(one.params)
    assert fingerprint(strategists.from_checkpoint(str(weights / "two")).params) != fingerprint(one.params)
    altered = one.params | {"embed": one.params["embed"].at[7, 3].multiply(1 + 2**-22)}
    swapped = one.params | {"embed": one.params["embed"][::-1]}
    assert len({fingerprint(params) for params in (one.params, altered, swapped)}) == 3


# --- without a strategist, and what fails -------------------------------------------------------------------------------


class Wanderer:
    """An actor that needs nobody: takes the first command there is. Fails on the tasks in `fails`."""

    needs_strategy, name, fails = False, "wanderer", ()

    def __init__(self):
        self.money, self.heard, self.counts = 0.0, [], {}

    def without_strategist(self, mode):
        self.mode = mode
        return self

    def begin(self, environment, seed):
        return self

    async def act(self, observation, *, strategy, admissible):
        self.money += 0.25
        self.heard.append(strategy)
        if any(words in observation for words in self.fails):
            raise TimeoutError("no answer")
        return admissible[0]

    def close(self):
        pass


@pytest.fixture
def wanderer(monkeypatch):
    kind = type("OwnWanderer", (Wanderer,), {})
    monkeypatch.setitem(partners.ACTORS, "wanderer", partners.ActorKind(lambda *_: kind(), False, lambda config: kind.name))
    return kind


def alone(output, mode, **options):
    changes = {"actor": "wanderer", "environments.webshop.share": 0.0}
    return Evaluation(tiny(**changes), Options(**({"strategist": mode, "tasks": 4, "output": str(output)} | options)), StopRequest())


@pytest.mark.parametrize("mode, name", [("none", "wanderer"), ("react", "wanderer (thinking first)")])
def test_an_actor_that_can_plays_alone(wanderer, tmp_path, capsys, mode, name):
    run = alone(tmp_path / "out", mode)
    rows = run.everything()
    assert set(run.actor.heard) == {""} and run.actor.mode == mode
    assert {row["figure"] for row in rows} == {"success", "reward", "turns"}  # nobody wrote a strategy
    assert {(row["actor"], row["mode"], row["sampled_tokens"]) for row in rows} == {(name, mode, 0)}
    assert rows[0]["money"] == 0.25 * len(run.actor.heard) and rows[0]["n"] == 4
    told = capsys.readouterr().out
    assert f"no strategist{' (the actor writes its own strategies)' if mode == 'react' else ''}, actor {name}" in told


def test_an_episode_that_failed_is_left_out_told_and_played_again(wanderer, tmp_path, capsys):
    first = alone(tmp_path / "out", "none")
    whole = without_cost(alone(tmp_path / "whole", "none").everything())
    told = first.task_sets[0].make().reset(first.task_sets[0].held_out[1])
    wanderer.fails = (told,)
    rows = first.everything()
    assert (rows[0]["n"], rows[0]["episodes"], rows[0]["masked"]) == (3, 4, 1)
    told = capsys.readouterr().out
    assert "4 episodes, of which 1 failed to be played and are left out" in told and "the same command plays" in told
    wanderer.fails = ()
    again = alone(tmp_path / "out", "none")
    rows = without_cost(again.everything())
    assert 1 <= len(again.actor.heard) <= 3  # the turns of that one episode
    assert (rows[0]["money"], rows[0]["masked"]) == (whole[0]["money"] + 0.25, 0)  # the failed call was paid too
    assert [row | {"money": 0} for row in rows] == [row | {"money": 0} for row in whole]
    wanderer.fails = ("",)
    rows = alone(tmp_path / "none left", "none").everything()
    assert [(row["figure"], row["n"], row["mean"], row["masked"]) for row in rows if row["task_type"] is None] == [("success", 0, None, 4)]


# --- comparisons --------------------------------------------------------------------------------------------------------


def finished(path, outcomes, *, environment="webshop", name="a", masked=()):
    """The folder of an evaluation with these outcomes, task id → reward."""
    what = {
        "strategist": {"mode": "trained", "name": name, "weights": name},
        "actor": "literal",
        "environments": {environment: {"split": "generated:eval"}},
    }
    folder = EvaluationFolder.open(path, what, {})
    episodes = [
        Trajectory(environment, task, turns=[Turn()], outcome=outcome, success=outcome == 1.0, masked="failed" if task in masked else None)
        for task, outcome in outcomes.items()
    ]
    write_jsonl(folder.episodes(environment), episodes)
    write_table(path / "results", {"what": what}, [{"n": len(episodes)}])
    return folder


def test_a_comparison_pairs_the_tasks_that_both_have(tmp_path, capsys):
    this = finished(tmp_path / "a", {"1": 1.0, "2": 0.5, "3": 1.0, "4": 0.25, "5": 1.0, "6": 1.0}, masked=["6"])
    other = finished(tmp_path / "b", {"1": 0.0, "2": 0.5, "3": 1.0, "4": 0.75, "6": 1.0, "7": 0.0}, name="b")
    success, reward = compare.compare(this, other)
    assert (success["figure"], success["n"], success["only_this"], success["only_other"]) == ("success", 4, 1, 2)
    assert (success["mean_this"], success["mean_other"], success["difference"]) == (0.5, 0.25, 0.25)
    assert (success["p"], success["test"]) == (1.0, "McNemar, exact")  # one task changed
    assert (reward["mean_this"], reward["mean_other"], reward["difference"]) == (0.6875, 0.5625, 0.125)
    assert reward["p"] == 1.0 and reward["test"].startswith("paired permutation, exact")  # +1 and -0.5: no sign makes the sum smaller
    assert reward["low"] <= reward["difference"] <= reward["high"]
    compare.show(this, other, [success, reward])
    told = capsys.readouterr().out
    assert "A: trained strategist a, actor literal" in told and "B: trained strategist b" in told
    assert "strategist.weights is 'b' there and 'a' here" in told
    assert "+25.0 points" in told and "McNemar, exact" in told and "+0.125" in told
    assert "webshop: 4 tasks that both have, without 1 that only A has and 2 that only B has" in told
    mirrored = compare.compare(other, this)
    assert [row["difference"] for row in mirrored] == [-0.25, -0.125] and [row["p"] for row in mirrored] == [1.0, 1.0]


def test_what_cannot_be_compared_is_told(tmp_path):
    one = finished(tmp_path / "one", {"1": 1.0})
    with pytest.raises(UserError, match="share no task"):
        compare.compare(one, finished(tmp_path / "elsewhere", {"2": 1.0}))
    with pytest.raises(UserError, match="share no task"):
        compare.compare(one, finished(tmp_path / "other", {"1": 1.0}, environment="alfworld"))
    with pytest.raises(UserError, match="there is no evaluation in"):
        EvaluationFolder.of_results(tmp_path / "nowhere")
    (tmp_path / "one" / "results.json").rename(tmp_path / "kept.json")
    with pytest.raises(UserError, match="has no results yet"):
        EvaluationFolder.of_results(tmp_path / "one")
    (tmp_path / "kept.json").rename(tmp_path / "one" / "results.json")
    good = one.episodes("webshop").read_text()
    for damage, words in (
        ("{]\n", "line 2 of .*webshop.jsonl is not a trajectory"),
        (good.replace('"outcome":1.0', '"outcome":"best"'), "line 2 of .*webshop.jsonl is no episode of webshop"),
        (good.replace('"outcome":1.0', '"outcome":7.5'), "line 2 of .*webshop.jsonl is no episode of webshop"),
    ):
        one.episodes("webshop").write_text(good + damage)
        with pytest.raises(UserError, match=words):
            compare.compare(one, one)
    (tmp_path / "one" / "evaluation.json").write_text("[1]")
    with pytest.raises(UserError, match="does not say what was evaluated"):
        EvaluationFolder.of_results(tmp_path / "one")


# --- refusals, and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, changes, words",
    [
        ({"strategist": "best"}, {}, "no mode --strategist=best: choose one of none, react, vanilla, trained"),
        ({"strategist": "none"}, {}, "the actor literal only carries out a strategist's words"),
        ({"strategist": "react"}, {}, "the actor literal only carries out a strategist's words"),
        ({"checkpoint": ""}, {}, "say which weights"),
        ({"checkpoint": "runs/nowhere"}, {}, "no checkpoint at runs/nowhere"),
        ({"checkpoint": "random"}, {}, "no checkpoint at random"),
        ({"step": 9}, {}, "no run's folder and has no steps"),
        ({"strategist": "vanilla"}, {"model.source": "weights/none"}, "no model weights at weights/none"),
        ({"split": "tomorrow"}, {}, "no split 'tomorrow'"),
        ({"split": "alfworld=valid_seen"}, {}, "ALFWORLD_DATA"),
        ({"split": "kitchen=generated:eval"}, {}, "give one name, or ENVIRONMENT=NAME,… of alfworld, webshop"),
        ({"tasks": 0}, {}, "--tasks is 0"),
        ({"repeats": 0}, {}, "--repeats is 0"),
        ({}, {"evaluate.temperature": -1.0}, "the temperature is -1"),
        ({}, {"rollout.max_context": 100_000}, "the model knows positions only up to"),
        ({}, {"actor": "oracle"}, "unknown actor 'oracle'"),
        ({"checkpoint": "no", "split": "no"}, {"actor": "oracle"}, r"misses 4 things\. \(1\) no checkpoint.*\(4\) unknown actor"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_written(tmp_path, weights, monkeypatch, options, changes, words):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(UserError, match=words) as told:
        evaluation(tmp_path / "out", weights, changes=changes, **options)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_another_evaluation_in_the_folder_is_refused(unbroken, weights, tmp_path):
    before = {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()}
    for options, changes, words in (
        ({}, {"evaluate.temperature": 0.5}, "sampling.temperature is 1.0 there and 0.5 here"),
        ({"checkpoint": str(weights / "two")}, {}, "strategist.weights is"),
        ({"repeats": 1}, {}, "repeats is 2 there and 1 here"),
        ({}, {"environments.alfworld.max_turns": 5}, "environments.alfworld.max_turns is 3 there and 5 here"),
    ):
        with pytest.raises(UserError, match=words):
            evaluation(unbroken, weights, changes=changes, **options)
    assert {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()} == before
    evaluation(unbroken, weights, checkpoint=str(weights / "run"))  # the same weights under another name go on
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to anna").write_text("dear")
    with pytest.raises(UserError, match="already holds something that is no evaluation"):
        evaluation(tmp_path / "letters", weights)


def test_the_command_line(unbroken, weights, tmp_path):
    """Untrained weights against trained ones, and what is compared."""
    command = [sys.executable, "-m", "epo_jax.evaluate", "--config=configs/alfshop.py", "--strategist=vanilla", "--tasks=10", "--temperature=0"]
    command += [f"--config.{name}={value}" for name, value in TINY.items()]
    command += [f"--config.model.source={weights / 'two'}", f"--output={tmp_path / 'out'}", f"--compare={unbroken}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert f"vanilla strategist {weights / 'two'}, actor literal" in done.stdout
    for words in ("alfworld, generated:eval: 10 episodes; the strategist read", "    pick_", "tokens a strategy"):
        assert words in done.stdout
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["other"]["path"] == str(unbroken) and {row["n"] for row in record["rows"]} == {10}
    this, other = (EvaluationFolder.of_results(path) for path in (tmp_path / "out", unbroken))
    assert compare.compare(this, other) == record["rows"]
