"""Checkpoints come back bit for bit, while the run goes on too, and as many stay as should."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading

import jax
import numpy as np
import pytest

from epo_jax import checkpoint
from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.errors import UserError
from tests.checkpoint.states import MODEL, abstract, assert_same, make_state


def test_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a" / "b")
    assert checkpoints.latest() is None
    record = {"round": 3, "phase": "learn", "model": MODEL, "nested": {"x": [1, None, 0.1]}}
    checkpoints.save(7, make_state(7), record)
    state, back = Checkpoints(tmp_path / "a" / "b").restore(abstract(make_state(0)), model=MODEL)
    assert back == record and checkpoints.latest() == 7 and checkpoints.read_record() == record
    assert_same(state, make_state(7))
    assert isinstance(state.seed, int) and isinstance(state.host, np.ndarray)
    np.testing.assert_array_equal(jax.random.uniform(state.key[1], (4,)), jax.random.uniform(make_state(7).key[1], (4,)))


def test_another_kind_of_random_key(tmp_path):
    key = jax.random.key(3, impl="rbg")
    Checkpoints(tmp_path).save(0, {"key": key}, {})
    state, _ = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: {"key": key}))
    assert state["key"].dtype == key.dtype
    np.testing.assert_array_equal(jax.random.uniform(state["key"]), jax.random.uniform(key))


def test_keeps_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5, 9):
        checkpoints.save(step, make_state(step), {"step": step})
    assert checkpoints.steps() == [5, 9]
    assert sorted(os.listdir(tmp_path)) == ["step_0000000005", "step_0000000009"]
    state, record = checkpoints.restore(abstract(make_state(0)), step=5)
    assert record == {"step": 5}
    assert_same(state, make_state(5))


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"try": 1})
    checkpoints.save(1, make_state(2), {"try": 2})
    state, record = checkpoints.restore(abstract(make_state(0)))
    assert record == {"try": 2} and os.listdir(tmp_path) == ["step_0000000001"]
    assert_same(state, make_state(2))


def test_keeps_for_good_what_says_so_and_what_outlasts(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4, 5):
        checkpoints.outlasting = [2] if step < 5 else [4]  # what was the best is so no longer
        checkpoints.save(step, make_state(step), {"keep": step == 1})
    assert checkpoints.steps() == [1, 4, 5]


# --- written while the run goes on --------------------------------------------------------------------------------------------------------------


def test_the_state_may_change_while_it_is_written(tmp_path, monkeypatch):
    """Nothing is written before the state was changed in place and its arrays were given away."""
    checkpoints = Checkpoints(tmp_path)
    changed, save_async = threading.Event(), checkpoint.ocp.save_async

    class Late:
        def __init__(self, arrays):
            self.result = lambda: (changed.wait(20), arrays.result())

    monkeypatch.setattr(checkpoint.ocp, "save_async", lambda path, state: Late(save_async(path, state)))
    state = make_state(1)
    expected = jax.tree.map(lambda leaf: leaf if isinstance(leaf, int) else leaf.copy(), state)
    checkpoints.begin(1, state, {"step": 1})
    assert checkpoints.steps() == []  # and what is not whole is not there
    state.host[:] = 0
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)((state.params, state.opt_state)))
    changed.set()
    checkpoints.settle()
    assert_same(Checkpoints(tmp_path).restore(abstract(make_state(0)))[0], expected)


def test_what_failed_in_the_background_is_told_by_whoever_waits_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_and_sync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        checkpoints.begin(2, make_state(2), {})
        with pytest.raises(UserError, match="the disk is full, make room; the last good one is step 1"):
            checkpoints.begin(3, make_state(3), {})
    assert checkpoints.steps() == [1]
    checkpoints.save(3, make_state(3), {})
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(3))


def test_works_inside_a_running_event_loop(tmp_path):
    async def save_and_restore():
        Checkpoints(tmp_path).save(1, make_state(1), {})
        return Checkpoints(tmp_path).restore(abstract(make_state(0)))[0]

    assert_same(asyncio.run(save_and_restore()), make_state(1))


def test_parameters_alone(tmp_path):
    Checkpoints(tmp_path).save(3, make_state(3), {"model": MODEL, "round": 2})
    model, params, record = restore_params(tmp_path)
    assert model == MODEL and record["round"] == 2
    expected = make_state(3).params
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    with pytest.raises(UserError, match="no 'weights'"):
        restore_params(tmp_path, name="weights")
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        restore_params(tmp_path, 4)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UserError, match="not those of this model"):
        restore_params(tmp_path, shardings={"embed": one})


def test_the_record_is_readable_by_people(tmp_path):
    path = Checkpoints(tmp_path).save(3, make_state(3), {"round": 2})
    assert json.loads((path / "checkpoint.json").read_text())["record"] == {"round": 2}
