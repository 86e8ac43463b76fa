"""Whole runs of StepAgent with a tiny model: what they leave, that they continue exactly, and how they refuse."""

from __future__ import annotations

import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from configs.stepagent import get_config
from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.published import to_published
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


@pytest.mark.slow
def test_recorded_experts_come_up_again_with_nothing_of_the_last_cycle_and_a_stopped_run_goes_on_to_the_same(tmp_path: pathlib.Path) -> None:
    """Eight conversations without scores, all of them inspected in both cycles: other seeds, other actions, values of the critic as it is then."""
    first = StepAgentRun(tiny("inverse", tmp_path / "experts"), StopRequest())
    experts = list(itertools.islice(first._experts(0), 8))
    for expert in experts:
        for turn in expert.turns:
            turn.advantage = None
    first.partners.close(), first.playing.close()
    data = tmp_path / "experts.json"
    data.write_text(json.dumps([to_published(expert) for expert in experts]))
    unbroken = StepAgentRun(tiny("inverse", tmp_path / "unbroken", data=str(data)), StopRequest())
    unbroken.everything()
    one, two = (read_jsonl(unbroken.folder.path / "inspections" / f"cycle_00{cycle}.jsonl") for cycle in (0, 1))
    assert [each.task_id for each in one] == [each.task_id for each in two] and len({each.seed for each in [*one, *two]}) == 16
    said = [[[action["tokens"] for action in each.extra["inspected"]] for each in cycle] for cycle in (one, two)]
    assert said[0] != said[1] and len({str(actions[0]) for actions in said[0]}) > 4
    values = [[turn.values[0] for each in read_jsonl(unbroken.folder.trajectories(cycle)) for turn in each.turns] for cycle in (0, 1)]
    assert not any(values[0]) and any(values[1])  # a critic begins at 0, and has learned by the second cycle
    for stop in (StopAtStep(round=1, steps=0), StopAtStep(round=1, steps=1)):
        folder = tmp_path / f"stopped_{stop.when[1]}"
        stop.run = StepAgentRun(tiny("inverse", folder, data=str(data)), stop)
        with pytest.raises(Stopped):
            stop.run.everything()
        run = StepAgentRun(tiny("inverse", folder, data=str(data)), StopRequest())
        run.everything()
        jax.tree.map(np.testing.assert_array_equal, unbroken.learner.state.params, run.learner.state.params)


@pytest.mark.slow
def test_an_implicit_run_stopped_in_a_cycle_continues_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    unbroken = StepAgentRun(tiny("implicit", tmp_path / "unbroken", **{"stepagent.reference": "start"}), StopRequest())
    unbroken.everything()
    stop = StopAtStep(round=1, steps=1)
    stop.run = StepAgentRun(tiny("implicit", tmp_path / "stopped", **{"stepagent.reference": "start"}), stop)
    with pytest.raises(Stopped):
        stop.run.everything()
    run = StepAgentRun(tiny("implicit", tmp_path / "stopped", **{"stepagent.reference": "start"}), StopRequest())
    run.everything()
    jax.tree.map(np.testing.assert_array_equal, unbroken.learner.state.params, run.learner.state.params)


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
        ("inverse", {"credit.discount": 1.5}, "from 0 to 1"),
        ("inverse", {"credit.outcome_weight": 1.0}, "the expert's, not what the policy's actions led to"),
        ("inverse", {"credit.process_weight": 0.0}, "the discriminator's reward is the process reward"),
        ("inverse", {"credit.permute": True}, "whose control is stepagent.beta=0"),
        ("inverse", {"critic.epochs": 0}, "at least 1"),
        ("inverse", {"learn.packing": True}, "learn.packing is True, which inverse reflection does not read"),
        ("inverse", {"learn.overlong": "split"}, "drops whole turns"),
        ("inverse", {"rollout.workers": -1}, "or 0 for none"),
        ("inverse", {"learn.epochs": 0, "rounds": -1}, "rounds is -1: give 0 or more; learn.epochs is 0: give 1 or more"),
        ("implicit", {"learn.learning_rate": math.nan}, "learn.learning_rate is nan: give a number that is not negative"),
        ("inverse", {"evaluate.every": 0}, "evaluate.every is 0: give 1 or more"),
        ("implicit", {"learn.kl_weight": 0.1}, "learn.kl_weight is 0.1, which implicit reflection does not read"),
        ("implicit", {"learn.clip_low": 0.2, "learn.clip_high": 0.2}, "learn.clip_low is 0.2"),
        ("implicit", {"credit.estimator": "grpo"}, "leave it at reinforce"),
        ("implicit", {"credit.permute": True}, "whose control is stepagent.beta=0"),
        ("implicit", {"stepagent.reflect_on": "episodes"}, "leave it at inspection"),
        ("inverse", {"stepagent.reflect_on": "episodes"}, "inspected states"),
        ("inverse", {"stepagent.discriminator.label_smoothing": 0.5}, "below 0.5"),
    ],
)
def test_contradictions_are_told_before_anything_is_written(preset: str, changes: dict, words: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=words):
        StepAgentRun(tiny(preset, tmp_path / "run", **changes), StopRequest())
    assert not (tmp_path / "run").exists()
