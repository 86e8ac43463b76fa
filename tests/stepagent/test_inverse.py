"""The discriminator: its loss and rewards by hand, what it learns, and its guards."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.stepagent import get_config
from epo_jax.mesh import make_mesh
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.stepagent.inspection import Pair
from epo_jax.stepagent.inverse import Discriminator, cross_entropy, rewards_of
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)


def parameters():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32), declare(CONFIG))


def pairs(count: int = 16) -> list[Pair]:
    """The expert says 5 or 6, the policy 7 or 8; every fourth pair agrees."""
    random, found = np.random.default_rng(0), []
    for index in range(count):
        state, expert = random.integers(10, 64, 4).tolist(), [5 + index % 2]
        policy = expert if index % 4 == 0 else [7 + index % 2]
        found.append(Pair("test", str(index), state, expert, policy, [-1.0], differ=policy != expert))
    return found


def discriminator(folder: pathlib.Path, **changes) -> Discriminator:
    config = get_config("inverse")
    config.update_from_flattened_dict(
        {"learn.rows": 8, "learn.accumulation": 1, "learn.length_buckets": (8,), "learn.max_length": 8, "rollout.max_context": 8,
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
    first = model.learn(pairs(), 0)
    assert first["discriminator_steps"] == 40 and first["discriminator_right_on_expert"] == first["discriminator_right_on_policy"] == 0.0  # undecided
    assert model.learn(pairs(), 0) == {}  # once a cycle
    like, unlike = (Trajectory("test", "x", turns=[Turn(prompt_tokens=[20, 21], tokens=[one]), Turn(prompt_tokens=[22], tokens=[other])])
                    for one, other in ((5, 7), (8, 6)))  # fmt: skip
    masked = Trajectory("test", "y", turns=[Turn(prompt_tokens=[1], tokens=[5])], masked="actor failed")
    model.reward([like, masked, unlike])
    assert like.turns[0].process_reward > like.turns[1].process_reward + 0.5
    assert unlike.turns[1].process_reward > unlike.turns[0].process_reward + 0.5
    assert masked.turns[0].process_reward is None
    second = model.learn(pairs(), 1)
    assert second["discriminator_right_on_expert"] == second["discriminator_right_on_policy"] == 1.0
    assert second["discriminator_steps"] == 0  # it is right already
    again = discriminator(tmp_path)
    assert again.learn(pairs(), 1) == {}
    np.testing.assert_array_equal(again.logits([like])[0], model.logits([like])[0])


def test_smoothed_labels_bound_how_sure_it_becomes(tmp_path: pathlib.Path) -> None:
    """With targets ε and 1 - ε the best logit is ± log((1 - ε) / ε)."""
    told = [pair for pair in pairs() if pair.differ]
    sure = []
    for smoothing in (0.0, 0.3):
        changes = {"stepagent.discriminator.label_smoothing": smoothing, "stepagent.discriminator.steps": 120}
        model = discriminator(tmp_path / str(smoothing), **changes)
        model.learn(told, 0)
        probe = [Trajectory("test", "x", turns=[Turn(prompt_tokens=pair.state, tokens=pair.expert)]) for pair in told]
        sure.append(float(np.mean([logits[0] for logits in model.logits(probe)])))
    np.testing.assert_allclose(sure[1], np.log(0.3 / 0.7), atol=0.15)
    assert sure[0] < 2 * sure[1]


def test_actions_that_cannot_be_told_apart_are_worth_the_same(tmp_path: pathlib.Path) -> None:
    model = discriminator(tmp_path)
    agreed = [pair for pair in pairs(32) if not pair.differ]
    model.learn(agreed, 0)
    probe = [Trajectory("test", "x", turns=[Turn(prompt_tokens=pair.state, tokens=pair.expert)]) for pair in agreed]
    np.testing.assert_allclose([logits[0] for logits in model.logits(probe)], 0.0, atol=0.3)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_number_of_steps_is_a_limit(steps: int, tmp_path: pathlib.Path) -> None:
    assert discriminator(tmp_path, **{"stepagent.discriminator.steps": steps}).learn(pairs(), 0)["discriminator_steps"] == steps
