"""The schedule by hand, and what AdamW touches."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.errors import UserError
from epo_jax.learn.optimizer import Learning, make_optimizer, make_schedule


def test_cosine_with_warm_up() -> None:
    rate = make_schedule(Learning(learning_rate=2.0, warmup_ratio=0.15), total_steps=20)
    rates = [float(rate(step)) for step in range(25)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])  # ceil(0.15 * 20) = 3 steps up, none of them wasted
    expected = [1.0 + np.cos(np.pi * (step - 3) / 17) for step in range(3, 20)]
    np.testing.assert_allclose(rates[3:20], expected, rtol=1e-4, atol=1e-6)
    assert rates[20:] == [0.0] * 5


def test_constant_and_a_single_step() -> None:
    rate = make_schedule(Learning(learning_rate=3.0, schedule="constant", warmup_ratio=0.0), total_steps=5)
    assert [float(rate(step)) for step in (0, 4, 100)] == [3.0, 3.0, 3.0]
    assert float(make_schedule(Learning(learning_rate=1.0, warmup_ratio=0.0), total_steps=1)(0)) == 1.0
    assert float(make_schedule(Learning(learning_rate=1.0, warmup_ratio=0.03), total_steps=1)(0)) > 0.0


def test_clipping_bounds_the_gradient_that_adam_sees() -> None:
    params = {"w": jnp.zeros(4)}
    optimizer = make_optimizer(Learning(clip_norm=1.0), total_steps=10)
    _, state = optimizer.update({"w": jnp.full(4, 100.0)}, optimizer.init(params), params)
    (first_moment,) = optax.tree_utils.tree_get_all_with_path(state, "mu")
    np.testing.assert_allclose(first_moment[1]["w"], 0.1 * 0.5, rtol=1e-5)
    free = make_optimizer(Learning(clip_norm=0.0), total_steps=10)
    _, state = free.update({"w": jnp.full(4, 100.0)}, free.init(params), params)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["w"], 0.1 * 100.0, rtol=1e-5)


def test_weight_decay_spares_norms() -> None:
    params = {"layers": {"wq": jnp.ones((2, 3)), "attn_norm": jnp.ones((2, 3))}, "final_norm": jnp.ones(3)}
    learning = Learning(learning_rate=0.1, schedule="constant", warmup_ratio=0.0, weight_decay=0.5)
    optimizer = make_optimizer(learning, total_steps=1)
    zeros = {"layers": {"wq": jnp.zeros((2, 3)), "attn_norm": jnp.zeros((2, 3))}, "final_norm": jnp.zeros(3)}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["wq"], -0.05, rtol=1e-6)
    assert not updates["layers"]["attn_norm"].any() and not updates["final_norm"].any()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="cosine"):
        make_optimizer(dataclasses.replace(Learning(), schedule="linear"), 10)
    with pytest.raises(UserError, match="warm-up"):
        make_optimizer(dataclasses.replace(Learning(), warmup_ratio=3.0), 10)
