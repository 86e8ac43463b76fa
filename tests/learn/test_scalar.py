"""A Llama with a scalar head, and PPO's critic that is made of one: values, losses and what learning changes."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.defaults import get_defaults
from epo_jax.learn.critic import Critic, value_loss
from epo_jax.learn.scalar import ScalarBatch, ScalarModel, scalars
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8)


def parameters():
    random = np.random.default_rng(1)
    return jax.tree.map(lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32), declare(CONFIG))


def batch(targets: np.ndarray) -> ScalarBatch:
    """Two passes of two rows of ten tokens, the number after the last one asked for; `targets` [2,2]."""
    random = np.random.default_rng(0)
    shape = (2, 2, 10)
    at_end = (np.arange(10) == 9) & np.ones(shape, bool)
    return ScalarBatch(
        tokens=random.integers(0, 64, shape).astype(np.int32),
        positions=np.broadcast_to(np.arange(10, dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        weights=at_end.astype(np.float32),
        targets=np.where(at_end, targets[..., None], 0.0).astype(np.float32),
        before=np.zeros(shape, np.float32),
    )


def test_value_loss_by_hand() -> None:
    """Before 0.5, clip 0.2: a value of 1 counts as 0.7 where that is the worse one."""
    values, targets, before = jnp.array([1.0, 1.0, 0.6]), jnp.array([1.0, 0.0, 1.0]), jnp.full(3, 0.5)
    np.testing.assert_allclose(value_loss(0.2)(values, targets, before), [0.5 * 0.3**2, 0.5, 0.5 * 0.4**2], rtol=1e-6)
    np.testing.assert_allclose(value_loss(0.0)(values, targets, before), [0.0, 0.5, 0.5 * 0.4**2], rtol=1e-5, atol=1e-12)
    slope = jax.grad(lambda v: value_loss(0.2)(v, targets, before).sum())(values)
    np.testing.assert_allclose(slope, [0.0, 1.0, -0.4], rtol=1e-5)  # the first has moved far enough


def test_the_number_is_the_head_of_the_last_hidden_state() -> None:
    given = jax.tree.map(lambda array: array[0], batch(np.zeros((2, 2))))
    head = {"weight": jnp.arange(16.0), "bias": jnp.asarray(3.0)}
    hidden = llama.hidden_states(parameters(), CONFIG, given.tokens, given.positions, given.segment_ids)
    np.testing.assert_allclose(scalars(head, parameters(), CONFIG, given), np.asarray(hidden) @ np.arange(16.0) + 3.0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_it_learns_and_comes_back(own: bool, tmp_path: pathlib.Path) -> None:
    """Four different numbers are learned; a shared trunk stays as it was; a saved model goes on bit for bit."""
    goals = np.array([[1.0, -1.0], [0.5, 2.0]])
    trunk, given = parameters(), batch(goals)
    make = lambda: ScalarModel(CONFIG, value_loss(0.0), tmp_path, trunk=parameters() if own else None, learning_rate=3e-2)  # noqa: E731
    model = make()
    shared = None if own else trunk
    assert not model.score(given, shared).any()  # a new head says nothing
    losses = [model.update(given, shared)["loss"] for _ in range(60)]
    np.testing.assert_allclose(losses[0], 0.5 * np.mean(goals**2), rtol=1e-5)
    assert losses[-1] < 0.01 * losses[0]
    np.testing.assert_allclose(model.score(given, shared)[..., 9], goals, atol=0.2)
    jax.tree.map(np.testing.assert_array_equal, trunk, parameters())
    assert ("trunk" in model.params) == own
    model.save(4)
    again = make()
    assert again.saved() == 4
    again.restore(4)
    assert again.update(given, shared) == model.update(given, shared)


def test_eight_devices_learn_as_one_does(tmp_path: pathlib.Path) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, jax.devices()[:4])
    found = []
    for where in (None, mesh):
        model = ScalarModel(CONFIG, value_loss(0.2), tmp_path, trunk=parameters(), learning_rate=1e-2, mesh=where)
        found.append([model.update(batch(np.ones((2, 2))))["loss"] for _ in range(3)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


# --- the critic ---------------------------------------------------------------------------------------------------------------------------------


def episodes() -> list[Trajectory]:
    """Episodes whose first word says how they end."""
    random, found = np.random.default_rng(2), []
    for index in range(8):
        drawn = [(random.integers(3, 64, 2).tolist(), random.integers(3, 64, 3).tolist()) for _ in range(2)]
        turns = [Turn(prompt_tokens=[1 + index % 2, *read], tokens=said) for read, said in drawn]
        found.append(Trajectory("test", str(index), turns=turns, outcome=float(index % 2)))
    found.append(Trajectory("test", "masked", turns=[Turn(prompt_tokens=[1], tokens=[2])], masked="actor failed"))
    return found


def settings(**changes):
    config = get_defaults()
    config.update_from_flattened_dict(
        {"credit.estimator": "ppo", "critic.trunk": "own", "critic.learning_rate": 1e-2, "critic.epochs": 10, "critic.clip": 0.0,
         "learn.rows": 4, "learn.accumulation": 1, "learn.length_buckets": (16,), "rollout.max_context": 16, "model.remat": "none"} | changes
    )  # fmt: skip
    return config


@pytest.mark.parametrize("gae", ["turn", "token"])
def test_a_critic_values_before_each_turn_and_learns_each_round_once(gae: str, tmp_path: pathlib.Path) -> None:
    config, mesh = settings(**{"credit.gae": gae}), make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    critic = Critic(config, CONFIG, parameters(), 0, mesh, tmp_path)
    played = episodes()
    critic.value(played, None)
    count = 1 if gae == "turn" else 3
    assert all(turn.values == [0.0] * count for one in played[:-1] for turn in one.turns) and played[-1].turns[0].values == []
    assert critic.learn(played, None, 0)["critic_loss"] > 0.0
    assert critic.learn(played, None, 0) == {}
    fresh = episodes()
    critic.value(fresh, None)
    won, lost = ([turn.values[0] for one in fresh[which:8:2] for turn in one.turns] for which in (1, 0))
    assert min(won) > max(lost) + 0.3  # it read the word that says so, which stands before the turn
    # A value is the number after the last token before the turn, in the whole conversation.
    one = fresh[3]
    row = ScalarBatch(
        *(np.asarray(x)[None] for x in (one.tokens, np.arange(12), np.ones(12, int), np.zeros(12), np.zeros(12), np.zeros(12)))
    )
    expected = np.asarray(scalars(critic._model.params["head"], critic._model.params["trunk"], CONFIG, row))[0]
    np.testing.assert_allclose([turn.values[0] for turn in one.turns], expected[[2, 8]], atol=1e-4)
    again = Critic(config, CONFIG, parameters(), 0, mesh, tmp_path)
    assert again.learn(played, None, 0) == {}
    other = episodes()
    again.value(other, None)
    assert [turn.values for one in other for turn in one.turns] == [turn.values for one in fresh for turn in one.turns]
