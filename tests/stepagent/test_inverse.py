"""The discriminator: its loss and rewards by hand, what it learns, and its guards."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.stepagent import get_config
from epo_jax.batch import UNKNOWN_LOGPROB
from epo_jax.mesh import make_mesh
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.stepagent.inspection import differing
from epo_jax.stepagent.inverse import Discriminator, batches, cross_entropy, rewards_of
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)


def parameters():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32), declare(CONFIG))


def inspected(count: int = 16) -> list[Trajectory]:
    """Two states each. The expert says 5 or 6, the policy 7 or 8; every fourth time they agree."""
    random, found = np.random.default_rng(0), []
    for first in range(0, 2 * count, 2):
        trajectory = Trajectory("test", str(first), extra={"inspected": []})
        for index in (first, first + 1):
            expert, policy = 5 + index % 3 % 2, 7 + index % 2
            policy = expert if index % 4 == 0 else policy
            trajectory.turns.append(Turn(prompt_tokens=random.integers(10, 64, 4).tolist(), tokens=[expert], strategy=str(expert)))
            trajectory.extra["inspected"].append({"tokens": [policy], "logprobs": [-1.0], "text": str(policy)})
        found.append(trajectory)
    return found


def of_the_expert(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [dataclasses.replace(trajectory, extra={}) for trajectory in trajectories]


def discriminator(folder: pathlib.Path, **changes) -> Discriminator:
    config = get_config("inverse")
    config.update_from_flattened_dict(
        {"learn.rows": 8, "learn.accumulation": 1, "learn.length_buckets": (16,), "learn.max_length": 16, "rollout.max_context": 16,
         "model.remat": "none",
         "stepagent.discriminator.learning_rate": 1e-2, "stepagent.discriminator.steps": 40} | changes
    )  # fmt: skip
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return Discriminator(config, CONFIG, parameters(), 0, mesh, folder)


def test_loss_and_rewards_by_hand() -> None:
    logits = np.array([-2.0, 0.0, 3.0])
    d = 1 / (1 + np.exp(-logits))
    for target in (0.0, 0.1, 1.0):
        expected = -target * np.log(d) - (1 - target) * np.log(1 - d)
        np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.full(3, target), jnp.zeros(3)), expected, rtol=1e-5)
    np.testing.assert_allclose(rewards_of(logits, "expert"), -np.log(d), rtol=1e-10)
    np.testing.assert_allclose(rewards_of(logits, "log_odds"), np.log(1 - d) - np.log(d), rtol=1e-10)
    assert (np.diff(rewards_of(logits, "expert")) < 0).all()  # the surer it is of the policy, the less
    assert np.isfinite(rewards_of(np.array([-1e4, 1e4]), "expert")).all()


def test_it_learns_to_tell_and_rewards_what_the_expert_says(tmp_path: pathlib.Path) -> None:
    model = discriminator(tmp_path)
    first = model.learn(inspected(), 0)
    assert first["discriminator_steps"] == 40 and first["discriminator_right_on_expert"] == first["discriminator_right_on_policy"] == 0.0  # undecided
    assert model.learn(inspected(), 0) == {}  # once a cycle
    like, unlike = (Trajectory("test", "x", turns=[Turn(prompt_tokens=[20, 21], tokens=[one]), Turn(prompt_tokens=[22], tokens=[other])])
                    for one, other in ((5, 7), (8, 6)))  # fmt: skip
    masked = Trajectory("test", "y", turns=[Turn(prompt_tokens=[1], tokens=[5])], masked="actor failed")
    model.reward([like, masked, unlike])
    assert like.turns[0].process_reward > like.turns[1].process_reward + 0.5
    assert unlike.turns[1].process_reward > unlike.turns[0].process_reward + 0.5
    assert masked.turns[0].process_reward is None
    second = model.learn(inspected(), 1)
    assert second["discriminator_right_on_expert"] == second["discriminator_right_on_policy"] == 1.0
    assert second["discriminator_steps"] == 0  # it is right already
    again = discriminator(tmp_path)
    assert again.learn(inspected(), 1) == {}
    np.testing.assert_array_equal(again.logits([like])[0], model.logits([like])[0])


def test_the_reward_of_an_inspected_trajectory_is_that_of_the_policys_actions(tmp_path: pathlib.Path) -> None:
    model, trajectories = discriminator(tmp_path), inspected()
    model.learn(trajectories, 0)
    by_policy = [logits for trajectory in trajectories for logits in model.logits([trajectory])[0]]
    alone = []
    for trajectory in trajectories:
        state: list[int] = []
        for turn, found in zip(trajectory.turns, trajectory.extra["inspected"]):
            state = [*state, *turn.prompt_tokens]
            alone.append(Trajectory("test", "x", turns=[Turn(prompt_tokens=state, tokens=found["tokens"])]))
            state = [*state, *turn.tokens]
    np.testing.assert_allclose(by_policy, [logits[0] for logits in model.logits(alone)], atol=1e-4)
    model.reward(trajectories)
    rewards = [turn.process_reward for one in trajectories for turn in one.turns]
    np.testing.assert_allclose(rewards, np.logaddexp(0.0, -np.array(by_policy)), rtol=1e-6)


def test_smoothed_labels_bound_how_sure_it_becomes(tmp_path: pathlib.Path) -> None:
    """With targets ε and 1 - ε the best logit is ± log((1 - ε) / ε)."""
    sure = []
    for smoothing in (0.0, 0.3):
        changes = {"stepagent.discriminator.label_smoothing": smoothing, "stepagent.discriminator.steps": 120}
        model, trajectories = discriminator(tmp_path / str(smoothing), **changes), inspected()
        model.learn(trajectories, 0)
        differ = np.concatenate([differing(trajectory) for trajectory in trajectories])
        sure.append(float(np.mean(np.concatenate(model.logits(of_the_expert(trajectories)))[differ])))
    np.testing.assert_allclose(sure[1], np.log(0.3 / 0.7), atol=0.15)
    assert sure[0] < 2 * sure[1]


def test_actions_that_cannot_be_told_apart_are_worth_the_same(tmp_path: pathlib.Path) -> None:
    model, trajectories = discriminator(tmp_path), inspected()
    for trajectory in trajectories:
        trajectory.extra["inspected"] = [{"tokens": turn.tokens, "logprobs": [-1.0], "text": turn.strategy} for turn in trajectory.turns]
    values = model.learn(trajectories, 0)
    assert np.isnan(values["discriminator_right_on_expert"]) and values["discriminator_steps"] == 40
    np.testing.assert_allclose(np.concatenate(model.logits(trajectories)), 0.0, atol=0.3)


def test_advantages_lie_on_the_policys_tokens_alone() -> None:
    turns = [Turn(prompt_tokens=[1, 2], tokens=[3], advantage=0.5), Turn(prompt_tokens=[4], tokens=[5], advantage=-2.0)]
    first = Trajectory("test", "x", turns=turns)
    first.extra["inspected"] = [{"tokens": [6, 7], "logprobs": [-1.0, -2.0], "text": ""}, {"tokens": [8], "logprobs": [-3.0], "text": ""}]
    (batch,) = batches([first], rows=1, accumulation=1, lengths=(10,), pad_id=0)
    assert batch.tokens[0, 0].tolist() == [1, 2, 3, 4, 5, 2, 6, 7, 4, 8]
    assert batch.loss_weights[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0.125, 0.125, 0, -1.0]  # A / (2 states × tokens)
    assert batch.turn_ids[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 2]
    assert batch.behavior_logprobs[0, 0].tolist() == [0, 0, 0, 0, 0, 0, -1, -2, 0, -3]
    (anchored,) = batches([first], rows=1, accumulation=1, lengths=(10,), pad_id=0, clone_weight=0.5)
    assert anchored.loss_weights[0, 0].tolist() == [0, 0, 0.25, 0, 0.25, 0, 0.125, 0.125, 0, -1.0]
    assert anchored.turn_ids[0, 0].tolist() == [0, 0, 1, 0, 2, 0, 1, 1, 0, 2]
    assert anchored.behavior_logprobs[0, 0, [2, 4, 9]].tolist() == [UNKNOWN_LOGPROB, UNKNOWN_LOGPROB, -3]


@pytest.mark.parametrize("steps", [0, 3])
def test_the_number_of_steps_is_a_limit(steps: int, tmp_path: pathlib.Path) -> None:
    assert discriminator(tmp_path, **{"stepagent.discriminator.steps": steps}).learn(inspected(), 0)["discriminator_steps"] == steps
