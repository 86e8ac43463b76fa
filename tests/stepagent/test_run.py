"""Whole runs of StepAgent with a tiny model: what they leave, that they continue exactly, and how they refuse."""

from __future__ import annotations

import math
import pathlib

import jax
import numpy as np
import pytest

from configs.stepagent import get_config
from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.stepagent.run import StepAgentRun
from epo_jax.trajectory import read_jsonl
from tests.tiny_run import MODEL, StopAtStep, metrics

TINY = MODEL | {
    "model.architecture.tokenizer_games": 10,
    "environments.alfworld.max_turns": 4,
    "environments.alfworld.train_split": "generated:train",
    "environments.alfworld.eval_split": "generated:eval",
    "environments.webshop.share": 0.0,
    "rollout.episodes": 8,
    "rollout.slots": 8,
    "rollout.max_context": 512,
    "rollout.max_strategy_tokens": 6,
    "learn.rows": 8,
    "learn.accumulation": 1,
    "learn.epochs": 2,
    "learn.max_length": 512,
    "learn.length_buckets": (256, 512),
    "warm_start.rows": 8,
    "warm_start.accumulation": 1,
    "warm_start.episodes": 8,
    "stepagent.experts": 8,
    "stepagent.discriminator.steps": 2,
    "rounds": 2,
    "evaluate.tasks": 2,
    "evaluate.every": 2,
    "tensorboard": False,
}


def tiny(preset: str, folder: pathlib.Path, **changes):
    config = get_config(preset)
    config.workdir = str(folder)
    config.update_from_flattened_dict(TINY | changes)
    return config


def test_an_implicit_run_leaves_everything(tmp_path: pathlib.Path) -> None:
    run = StepAgentRun(tiny("implicit", tmp_path / "run", **{"stepagent.clone_weight": 0.0}), StopRequest())
    run.everything()
    folder = run.folder.path
    inspected = read_jsonl(folder / "inspections" / "cycle_001.jsonl")
    assert len(inspected) == 8 and all(len(one.extra["inspected"]) == len(one.turns) for one in inspected)
    assert not {one.task_id for one in inspected} & {one.task_id for one in read_jsonl(folder / "inspections" / "cycle_000.jsonl")}
    assert [row["step"] for row in metrics(folder, "evaluation")] == [0, 2]
    cycles, steps = metrics(folder, "round"), metrics(folder, "step")
    assert len(cycles) == 2 and all(0 <= row["agreement"] <= 1 and row["states"] == 32 for row in cycles)
    assert len(steps) == 4 and all(row["trajectories"] == 8 for row in steps)  # all of them, twice a cycle
    for first, second in (steps[:2], steps[2:]):
        np.testing.assert_allclose(first["loss"], math.log(2), atol=1e-4)  # a cycle begins where its reference stands
        assert second["loss"] < first["loss"]
        assert abs(first["logprob_gap"]) < 1e-4  # the learner scores what was inspected as the sampler did
    played = read_jsonl(run.folder.evaluation(2))
    assert len(played) == 2 and {one.actor for one in played} == {"policy"}
    assert (folder / "strategist" / "config.json").is_file() and (folder / "curve.png").is_file()
    assert (folder / "page.html").read_text().count('class="block"') == 1 + 2 + 2  # the index, two evaluations, two cycles' inspections


@pytest.mark.slow
@pytest.mark.parametrize("reflect_on", ["inspection", "episodes"])
def test_an_inverse_run_stopped_in_a_cycle_continues_to_the_same_weights(reflect_on: str, tmp_path: pathlib.Path) -> None:
    changes = {"stepagent.reflect_on": reflect_on}
    if reflect_on == "episodes":
        changes |= {"credit.discount": 0.9, "stepagent.clone_weight": 0.0}
    unbroken = StepAgentRun(tiny("inverse", tmp_path / "unbroken", **changes), StopRequest())
    unbroken.everything()
    stop = StopAtStep(round=1, steps=1)
    stop.run = StepAgentRun(tiny("inverse", tmp_path / "stopped", **changes), stop)
    with pytest.raises(Stopped):
        stop.run.everything()
    run = StepAgentRun(tiny("inverse", tmp_path / "stopped", **changes), StopRequest())
    run.everything()
    for name in ("learner.state.params", "discriminator._model.params", "critic._model.params"):
        one, other = unbroken, run
        for part in name.split("."):
            one, other = getattr(one, part), getattr(other, part)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    first, second = metrics(unbroken.folder.path, "round")
    assert first["discriminator_steps"] == 2 and first["critic_loss"] > 0 and second["step_reward"] > 0
    trained = read_jsonl(unbroken.folder.trajectories(1))
    assert all(len(one.turns) == 1 for one in trained) == (reflect_on == "inspection")
    assert all(turn.values and turn.logprobs for one in trained for turn in one.turns)
    np.testing.assert_allclose(np.mean([np.mean([turn.advantage for turn in one.turns]) for one in trained]), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("implicit", {"actor": "literal"}, "prompt is act_brief"),
        ("implicit", {"environments.alfworld.prompt": "brief"}, "act or act_brief"),
        ("implicit", {"stepagent.reference": "behaviour"}, "round|start"),
        ("implicit", {"stepagent.beta": -0.1}, "beta and clone_weight at least 0"),
        ("implicit", {"stepagent.beta": 0.0, "stepagent.clone_weight": 0.0}, "nothing to learn from"),
        ("implicit", {"async_rounds": 1}, "plays rounds ahead"),
        ("implicit", {"judge": "openai"}, "no model is asked"),
        ("inverse", {"credit.estimator": "reinforce", "critic.trunk": "none"}, "set it to ppo"),
        ("inverse", {"critic.trunk": "none"}, "needs a value head"),
        ("inverse", {"stepagent.reward": "D"}, "expert, log_odds"),
        ("inverse", {"credit.discount": 0.9}, "nothing follows an inspected action"),
        ("inverse", {"stepagent.reflect_on": "episodes"}, "inspected states"),
        ("inverse", {"stepagent.discriminator.label_smoothing": 0.5}, "below 0.5"),
    ],
)
def test_contradictions_are_told_before_anything_is_written(preset: str, changes: dict, words: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=words):
        StepAgentRun(tiny(preset, tmp_path / "run", **changes), StopRequest())
    assert not (tmp_path / "run").exists()
