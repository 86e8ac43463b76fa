"""The main command with a tiny strategist: what a run leaves, that it continues exactly, and how it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers

from epo_jax.batch import BatchCounts
from epo_jax.checkpoint import restore_params
from epo_jax.errors import UserError
from epo_jax.export import export
from epo_jax.generate.engine import Sampling
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.learner import Position
from epo_jax.mesh import make_mesh
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.reward.judge import ProgressJudge
from epo_jax.rollout import tasks
from epo_jax.rollout.demonstrations import demonstrate
from epo_jax.rollout.prompts import load
from epo_jax.round_batches import RoundBatches
from epo_jax.strategist import MINI
from epo_jax.train import Run
from epo_jax.trajectory import Trajectory, Turn, by_environment, read_jsonl
from tests.tiny_run import StopAfter, finished, metrics, tiny

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run: warm start, two rounds, two evaluations, on a mesh of eight devices."""
    return finished(tmp_path_factory.mktemp("train") / "run")


def test_a_run_leaves_everything_it_promises(unbroken, capsys):
    folder = unbroken.folder.path
    rounds = metrics(folder, "round")
    assert [row["step"] for row in rounds] == [1, 2]
    assert [row["step"] for row in metrics(folder, "evaluation")] == [0, 2]
    assert len(metrics(folder, "step")) == 4
    for row in rounds:
        assert row["logprob_gap"] < 1e-4  # the learner scores what was sampled as the sampler did
        assert row["episodes"] == 16 and row["masked"] == 0
        for name in ("reward", "success", "advantage_nonzero_share", "grad_norm", "strategy_tokens", "repeated_token_share", "seconds_play", "seconds_judge", "seconds_learn", "compilations", "compile_seconds"):  # fmt: skip
            assert isinstance(row[name], (int, float)), name
    assert rounds[1]["compilations"] <= rounds[0]["compilations"] + 3  # shapes are bucketed
    played = read_jsonl(folder / "trajectories" / "round_001.jsonl")
    assert [trajectory.extra["index"] for trajectory in played] == list(range(16))
    assert {trajectory.weights_version for trajectory in played} == {"step-2"}
    assert all(turn.advantage is not None and turn.process_reward is not None for t in played for turn in t.turns)
    assert any((folder / "tensorboard").iterdir())
    assert (folder / "page.html").read_text().count('class="block"') == 1 + 2 + 2  # the index, and the conversations of each round and evaluation
    assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for row in metrics(folder, "evaluation") for name in ("alfworld/success", "webshop/reward"))
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_both_environments_are_played_and_measured_together(unbroken):
    """16 episodes a round with shares 3 to 1, and each environment's own figures."""
    played = read_jsonl(unbroken.folder.trajectories(1))
    groups = by_environment(played)
    assert {name: len(group) for name, group in groups.items()} == {"alfworld": 12, "webshop": 4}
    assert max(len(trajectory.turns) for trajectory in groups["alfworld"]) == 4
    assert max(len(trajectory.turns) for trajectory in groups["webshop"]) <= 3
    assert all(("bought" in trajectory.extra) == (trajectory.environment == "webshop") for trajectory in played)
    row = metrics(unbroken.folder.path, "round")[1]
    assert row["alfworld/episodes"] == 12 and row["webshop/episodes"] == 4 and row["webshop/bought"] is not None
    held_out = by_environment(read_jsonl(unbroken.folder.evaluation(2)))
    assert {name: len({trajectory.task_id for trajectory in group}) for name, group in held_out.items()} == {"alfworld": 4, "webshop": 4}


@pytest.mark.parametrize("permute", [False, True])
def test_a_batch_holds_both_environments_and_each_has_its_own_baseline(tmp_path, permute):
    """Whoever wins more often gains nothing by being of the easier environment; the control stays within an environment too."""
    run = Run.__new__(Run)
    run.config, run.stop = tiny(tmp_path, **{"credit.permute": permute}), StopRequest()
    run.partners = SimpleNamespace(judge=ProgressJudge(), clients=SimpleNamespace(note=str))
    run.learner = SimpleNamespace(position=Position())
    run.folder = SimpleNamespace(trajectories=lambda round: tmp_path / "round.jsonl")
    outcomes = {"alfworld": [1.0] * 7 + [0.0], "webshop": [0.25] * 7 + [0.5]}
    played = [
        Trajectory(name, str(index), turns=[Turn(progress=0.0)], start_progress=0.0, outcome=outcome)
        for name, several in outcomes.items()
        for index, outcome in enumerate(several)
    ]
    run.assign_credit(played, {})
    for name, group in by_environment(played).items():
        values = [trajectory.turns[0].advantage for trajectory in group]
        assert abs(np.mean(values)) < 1e-9 and np.std(values) == pytest.approx(1.0, abs=1e-4)
        if not permute:
            assert np.argmax(values) == np.argmax(outcomes[name])
    seen = []
    batches = RoundBatches(run.config, None, [], None)
    batches.batched = lambda trajectories, steps: (seen.extend(trajectories), ([], BatchCounts()))[1]
    assert list(batches.of_round(played, 0, {})) == [] and len(seen) == 16
    assert len(by_environment(seen[:8])) == len(by_environment(seen[8:])) == 2


def test_the_result_says_the_same_in_transformers(unbroken):
    """Greedy strategies of the exported folder, against transformers' own forward pass and tokenizer."""
    folder = unbroken.folder.export
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    observations = [read_jsonl(unbroken.folder.evaluation(2))[index].first_observation for index in range(4)]
    opening = load("alfworld", "brief").opening
    prompts = [tokenizer.apply_chat_template(opening(text), add_generation_prompt=True)["input_ids"] for text in observations]
    ours = unbroken_engine(unbroken).generate_batch(prompts, Sampling(temperature=0.0, max_new_tokens=16), range(4))
    for prompt, sampled in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :].tolist()
        assert sampled.tokens == theirs


def test_a_checkpoint_is_exported_as_the_run_left_it(unbroken, tmp_path):
    export(unbroken.folder.path, tmp_path / "out")
    for path in unbroken.folder.export.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(UserError, match="already holds something"):
        export(unbroken.folder.path, tmp_path / "out")
    with pytest.raises(UserError, match="no run at"):
        export(tmp_path / "nowhere" / "run", tmp_path / "other")
    with pytest.raises(UserError, match="no checkpoint of step 99"):
        export(unbroken.folder.path, tmp_path / "other", step=99)


def unbroken_engine(run):
    """A fresh engine over the run's last weights (the run's own is shut down)."""
    return run.playing.make_engine()


def test_a_run_that_diverges_says_so_and_keeps_the_weights_from_before(tmp_path):
    """A weight in the loss at which the first step overflows."""
    changes = {"learn.entropy_weight": 3e38, "warm_start.episodes": 0, "evaluate.tasks": 1}
    run = Run(tiny(tmp_path / "run", **changes), StopRequest())
    with pytest.raises(UserError, match="learning has diverged. The newest checkpoint in .* is from before"):
        run.everything()
    _, params, record = restore_params(run.folder.checkpoints)
    assert record["position"]["steps_before"] == 0 and all(np.isfinite(array).all() for array in jax.tree.leaves(params))
    assert not run.folder.export.exists()


@pytest.mark.slow
def test_stopped_in_every_phase_it_continues_to_the_same_parameters(unbroken, tmp_path):
    """Stopped again and again, each time after a few more looks, against the unbroken run, bit for bit."""

    stops = 0
    while True:
        try:
            run = Run(tiny(tmp_path / "run"), StopAfter(2 + 3 * stops))
            run.everything()
            break
        except Stopped:
            stops += 1
            assert stops < 30
    assert stops >= 3
    jax.tree.map(np.testing.assert_array_equal, unbroken.learner.state.params, run.learner.state.params)
    assert read_jsonl(run.folder.trajectories(1)) == read_jsonl(unbroken.folder.trajectories(1))


@pytest.mark.slow
def test_the_best_round_is_what_a_run_leaves_if_it_is_kept(tmp_path, monkeypatch, capsys):
    outcomes = iter([0.9, 0.1])
    monkeypatch.setattr("epo_jax.learning_run.mean_outcome", lambda trajectories: next(outcomes))
    few = {"rounds": 1, "evaluate.every": 1, "evaluate.tasks": 2, "warm_start.episodes": 8, "rollout.episodes": 8}
    run = finished(tmp_path / "run", **few, **{"checkpoint.keep_best": True, "checkpoint.keep": 1})
    assert re.search(r"the best round was 0 of 1: alfworld success .*, webshop reward .*; its weights are checkpoint 1,", capsys.readouterr().out)
    checkpoints = run.folder.checkpoints
    _, best, record = restore_params(checkpoints, 1)
    _, last, _ = restore_params(checkpoints)
    exported = transformers.AutoModelForCausalLM.from_pretrained(run.folder.export).get_input_embeddings().weight.detach().numpy()
    assert record["position"]["round"] == 0
    np.testing.assert_array_equal(exported, best["embed"])
    assert not np.array_equal(exported, last["embed"])


@pytest.mark.parametrize("packing", [False, True])
def test_packed_rounds_and_demonstrations_take_the_steps_of_padded_ones(tmp_path, packing):
    """As many steps, each of as many trajectories with the same weights in sum, in fewer entries; without a model, the arrays alone."""
    config = tiny(tmp_path, **{"learn.packing": packing, "warm_start.packing": packing, "learn.rows": 16, "warm_start.rows": 16})
    task_sets, tokenizer = tasks.load(config), Tokenizer.load(MINI)
    conversation = ConversationFormat(tokenizer)
    batches = RoundBatches(config, make_mesh({"data": -1}), task_sets, SimpleNamespace(tokenizer=tokenizer, conversation=conversation))
    cloning = list(itertools.islice(batches.of_demonstrations(0), 2))
    played = [
        demonstrate(dataclasses.replace(task_set, max_turns=1 + index % 5), task_set.train[index], index, conversation)
        for index in range(24)
        for task_set in [task_sets[index % 2]]
    ]
    values = {}
    rounds = list(batches.of_round(played, 0, values))
    for made, sizes in ((cloning, [16, 16]), (rounds, [16, 8])):
        assert [int(batch.segment_ids.max(axis=-1).sum()) for batch in made] == sizes
        np.testing.assert_allclose([batch.loss_weights.sum() for batch in made], sizes, rtol=1e-5)  # advantage 1: a trajectory's weights sum to 1
    assert (max(batch.segment_ids.max() for batch in rounds) > 1) == packing
    assert (values["padding_share"] < 0.5) == packing and values["dropped_turns"] == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"environments.alfworld.train_split": "tomorrow"}, "no split 'tomorrow'.*generated:train"),
        ({"environments.alfworld.eval_split": "valid_seen"}, "ALFWORLD_DATA"),
        ({"environments.webshop.eval_split": "test"}, "WEBSHOP_DATA"),
        ({"environments.webshop.prompt": "long"}, "full or brief"),
        ({"environments.webshop.options.pages": "short"}, "no pages 'short'"),
        ({"environments.webshop.share": -1.0}, "webshop.share is -1"),
        ({"environments.webshop.share": 0.0, "environments.alfworld.share": 0.0}, "every share is 0"),
        ({"environments.alfworld.max_turns": 0}, "at least one turn"),
        ({"actor": "oracle"}, "unknown actor 'oracle'.*literal"),
        ({"judge": "nobody"}, "no judge 'nobody'.*progress"),
        ({"credit.estimator": "reinforc"}, "did you mean 'reinforce'"),
        ({"model.source": "weights/none"}, "no model weights at weights/none"),
        ({"model.source": "gguf:no_such_package"}, "no GGUF weights"),
        ({"mesh.tensor": 8, "mesh.data": 1}, "does not divide the model"),
        ({"mesh.tensor": 3}, "cannot be divided"),
        ({"learn.length_buckets": (256,)}, "do not reach"),
        (
            {
                "model.source": "weights/none", "judge": "nobody",
                "environments.alfworld.train_split": "train", "environments.webshop.train_split": "train",
            },
            r"misses 4 things.*\(1\) no model weights at weights/none.*\(2\).*ALFWORLD_DATA.*\(3\).*WEBSHOP_DATA.*\(4\).*no judge 'nobody'",
        ),
        ({"credit.estimator": "grpo"}, r"compares episodes of one task.*group_size"),
        ({"rollout.group_size": 3}, r"must divide the 16 episodes"),
        ({"learn.rows": 6}, r"learn\.rows is 6.*multiple of 8"),
        ({"learn.overlong": "split"}, "recorded conversations"),
    ],
)  # fmt: skip
def test_bad_configurations_are_told_before_anything_is_written(tmp_path, monkeypatch, changes, words):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(UserError, match=words) as told:
        Run(tiny(tmp_path / "run", **changes), StopRequest())
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config=configs/alfshop.py", "--config.learn.learning_rat=1"], 'learning_rat. Did you mean "learning_rate"'),
        pytest.param(["--config=configs/alfshop.py:huge"], "smollm2", marks=pytest.mark.slow),
        pytest.param(["--config=configs/none.py"], "configs/none.py", marks=pytest.mark.slow),
        ([], "--config="),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence_and_exit_code_2(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "epo_jax.train", *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_episodes_can_be_played_by_asyncio_again_after_a_round(unbroken):
    """The engine outlives an event loop: every phase opens its own."""
    engine = unbroken_engine(unbroken)

    async def one():
        session = engine.open(1)
        try:
            return await engine.generate(session, [5, 6, 7], Sampling(max_new_tokens=4))
        finally:
            engine.close(session)

    assert asyncio.run(one()).tokens == asyncio.run(one()).tokens
    engine.shutdown()
