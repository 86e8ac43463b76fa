"""Whole runs of the main command by other methods of the family: PPO with everything that must survive a stop, and cloning in rounds."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from configs.alfshop import get_config
from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.train import Run
from epo_jax.trajectory import read_jsonl
from tests.tiny_run import MODEL, StopAtStep, metrics

TINY = MODEL | {
    "model.architecture.tokenizer_games": 10,
    "environments.alfworld.max_turns": 3,
    "environments.alfworld.train_split": "generated:train",
    "environments.alfworld.eval_split": "generated:eval",
    "environments.webshop.share": 0.0,
    "rollout.episodes": 16,
    "rollout.slots": 16,
    "rollout.max_context": 512,
    "rollout.max_strategy_tokens": 6,
    "learn.rows": 8,
    "warm_start.rows": 8,
    "learn.accumulation": 1,
    "learn.learning_rate": 1e-3,
    "learn.max_length": 512,
    "learn.length_buckets": (512,),
    "rounds": 2,
    "evaluate.tasks": 2,
    "evaluate.every": 2,
    "tensorboard": False,
}
PPO = {
    "credit.estimator": "ppo",
    "credit.gae": "token",
    "critic.trunk": "own",
    "critic.epochs": 1,
    "learn.kl_weight": 0.1,
    "learn.kl_kind": "k2",
    "learn.kl_reference": "round",
    "learn.normalisation": "token",
    "learn.entropy_weight": 0.01,
}


def tiny(folder: pathlib.Path, **changes):
    config = get_config()
    config.workdir = str(folder)
    config.update_from_flattened_dict(TINY | changes)
    return config


class ManyWords:
    """A judge in whose eyes variety is worth something, so that there is a reward to learn from."""

    name = "many words"

    async def score(self, trajectory) -> None:
        for turn in trajectory.turns:
            turn.process_reward = len(set(turn.tokens)) / 6 - 0.5


def judged(run: Run) -> Run:
    run.partners.judge = ManyWords()
    return run


@pytest.mark.slow
def test_ppo_stopped_in_the_middle_of_a_round_continues_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    """Critic, values, reference and advantages come back: parameters are bit for bit those of the unbroken run."""
    unbroken = judged(Run(tiny(tmp_path / "unbroken", **PPO), StopRequest()))
    unbroken.everything()
    for stop in (StopAtStep(0, 1), StopAtStep(1, 1)):
        run = stop.run = judged(Run(tiny(tmp_path / "stopped", **PPO), stop))
        with pytest.raises(Stopped):
            run.everything()
    run = judged(Run(tiny(tmp_path / "stopped", **PPO), StopRequest()))
    run.everything()
    jax.tree.map(np.testing.assert_array_equal, unbroken.learner.state.params, run.learner.state.params)
    jax.tree.map(np.testing.assert_array_equal, unbroken.critic._model.params, run.critic._model.params)
    assert read_jsonl(run.folder.trajectories(1)) == read_jsonl(unbroken.folder.trajectories(1))
    first, second = metrics(unbroken.folder.path, "round")
    assert first["critic_loss"] is not None and second["critic_explained"] is not None
    steps = metrics(unbroken.folder.path, "step")
    assert abs(steps[0]["reference_kl"]) < 1e-6 < steps[1]["reference_kl"]  # a round begins where its reference stands
    assert abs(steps[2]["reference_kl"]) < 1e-6


@pytest.mark.slow
def test_cloning_in_rounds_reads_demonstrations_and_plays_nothing(tmp_path: pathlib.Path) -> None:
    run = Run(tiny(tmp_path / "run", **{"credit.estimator": "bc", "rounds": 2}), StopRequest())
    run.everything()
    rounds = [read_jsonl(run.folder.trajectories(number)) for number in (0, 1)]
    assert all(one.actor == "expert" and {turn.advantage for turn in one.turns} == {1.0} for played in rounds for one in played)
    assert not {one.task_id for one in rounds[0]} & {one.task_id for one in rounds[1]}
    steps = metrics(run.folder.path, "step")
    assert steps[-1]["logprob"] > steps[0]["logprob"]


def test_contradictions_are_told_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    for changes, words in (
        ({"credit.estimator": "ppo"}, "needs a value head"),
        ({"credit.estimator": "grpo"}, "rollout.group_size"),
        ({"learn.kl_reference": "start"}, "kl_weight is 0"),
        ({"learn.importance_cap": 2.0}, "same ratio"),
        ({"credit.baseline": "mean"}, "baseline"),
    ):
        with pytest.raises(UserError, match=words):
            Run(tiny(tmp_path / "run", **changes), StopRequest())
    assert not (tmp_path / "run").exists()
