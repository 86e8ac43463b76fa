"""What a learner keeps: the best round's weights, whatever comes after them."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.defaults import get_defaults
from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.learn.learner import Best, Learner
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig

MODEL = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, rope_theta=1e4, rope_scaling=None,
    rms_norm_eps=1e-5, tie_embeddings=True, sliding_window=None, max_positions=64, architecture="llama", bos_token_id=None, eos_token_ids=(1,),
    pad_token_id=0,
)  # fmt: skip


def learner(folder: pathlib.Path, devices: int, **checkpoint: int) -> Learner:
    config = get_defaults()
    config.checkpoint.update({"keep": 1, "background": False} | checkpoint)
    strategist = SimpleNamespace(config=MODEL, params=llama.init_params(MODEL, jax.random.key(0), dtype=jnp.float32))
    mesh = make_mesh({"data": 1, "fsdp": devices, "tensor": 1}, jax.devices()[:devices])
    return Learner(config, strategist, mesh, folder, SimpleNamespace(requested=False), {"warm_start": 0, "rounds": 9})


def learn_a_round(learner: Learner) -> None:
    """A round whose steps double the weights."""
    learner.state = learner.state._replace(params=jax.tree.map(lambda x: 2 * x, learner.state.params))
    learner.end_round()


@pytest.mark.parametrize("devices", [1, 4])
def test_the_best_round_outlasts_later_ones_and_starts_and_is_what_the_run_leaves(tmp_path: pathlib.Path, devices: int) -> None:
    first = learner(tmp_path, devices, keep_best=1)
    first.begin_rounds()
    first.keep_if_best(0.2)
    learn_a_round(first)
    first.keep_if_best(0.9)
    best = jax.device_get(first.final_params())
    for outcome in (0.5, 0.9, float("nan")):  # as good is not better
        learn_a_round(first)
        first.keep_if_best(outcome)
    assert first.position.best == [Best(round=1, outcome=0.9, step=2)]
    assert Checkpoints(tmp_path).steps() == [2, 5]

    second = learner(tmp_path, devices, keep_best=1)  # continues
    assert second.position == first.position
    second.keep_if_best(0.3)
    learn_a_round(second)
    assert Checkpoints(tmp_path).steps() == [2, 6]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(second.final_params()), best)

    third = learner(tmp_path, devices, keep_best=1)
    third.keep_if_best(0.95)
    learn_a_round(third)
    assert Checkpoints(tmp_path).steps() == [6, 7]  # the one that was best before is an old one like any other


def test_a_last_round_that_is_the_best_is_found_from_the_checkpoints_too(tmp_path: pathlib.Path) -> None:
    """The evaluation after the last round comes after its checkpoint; who serves or evaluates the run later asks the checkpoints."""
    mine = learner(tmp_path, 1, keep_best=1)
    mine.begin_rounds()
    for outcome in (0.2, 0.9):
        mine.keep_if_best(outcome)
        if outcome == 0.2:
            learn_a_round(mine)
    left = jax.device_get(mine.final_params())
    assert Checkpoints(tmp_path).best() == 1  # as of before the evaluation
    mine.end_run()
    best = Checkpoints(tmp_path).best()
    assert best == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restore_params(tmp_path, best)[1]), left)
    again = learner(tmp_path, 1, keep_best=1)
    again.end_run()  # nothing new
    assert Checkpoints(tmp_path).steps() == [2, 3]


def test_the_two_best_and_every_third_are_kept_beside_the_last(tmp_path: pathlib.Path) -> None:
    """Rounds 0 to 7 begin with checkpoints 1 to 8."""
    options = dict(keep_best=2, keep_every=3)
    mine = learner(tmp_path, 1, **options)
    mine.begin_rounds()
    for outcome in (0.1, 0.6, 0.5, 0.6, 0.2, 0.7):
        mine.keep_if_best(outcome)
        learn_a_round(mine)
    assert [(best.round, best.outcome) for best in mine.position.best] == [(5, 0.7), (1, 0.6)]  # of equals the earlier
    assert Checkpoints(tmp_path).steps() == [1, 2, 4, 6, 7]
    mine.keep_if_best(0.65)
    mine.save()  # it was stopped
    again = learner(tmp_path, 1, **options)
    again.keep_if_best(0.65)  # and evaluates again what it had evaluated
    learn_a_round(again)
    assert [(best.round, best.outcome) for best in again.position.best] == [(5, 0.7), (6, 0.65)]
    assert Checkpoints(tmp_path).steps() == [1, 4, 6, 7, 9]


@pytest.mark.parametrize("devices", [1, 4])
def test_a_checkpoint_written_meanwhile_holds_what_was_when_it_began(tmp_path: pathlib.Path, devices: int) -> None:
    mine = learner(tmp_path, devices, background=True)
    mine.begin_rounds()
    before = jax.device_get(mine.state.params)
    mine.state = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)(mine.state)
    mine.final_params()  # waits for the disk
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(learner(tmp_path, 1).state.params), before)


def test_without_evaluations_the_run_leaves_its_last_weights(tmp_path: pathlib.Path) -> None:
    only = learner(tmp_path, 1, keep_best=1)
    only.begin_rounds()
    only.keep_if_best(float("nan"))
    learn_a_round(only)
    assert only.position.best == [] and Checkpoints(tmp_path).steps() == [2]
    assert only.final_params() is only.state.params
