"""How the learner feeds the device: the next input is on its way while a step is taken, and nothing is waited for but metrics, one step late."""

from __future__ import annotations

import jax

from configs.defaults import get_defaults
from epo_jax.interrupt import StopRequest
from epo_jax.learn.learner import Learner
from epo_jax.mesh import make_mesh
from epo_jax.strategist import Strategist
from tests.learn.test_step import ADVANTAGES, CONFIG, LENGTH, batch_of, parameters


def test_inputs_are_made_ahead_and_nothing_else_moves(tmp_path) -> None:
    config = get_defaults()
    config.learn.update(length_buckets=(LENGTH,), max_length=LENGTH)
    strategist = Strategist("test", CONFIG, jax.device_put(parameters()), None, None)
    learner = Learner(config, strategist, make_mesh({}, jax.devices()[:1]), tmp_path, StopRequest(), {"warm_start": 0, "rounds": 6})
    learner.begin_rounds()
    batch, events = batch_of(ADVANTAGES, rows=8), []

    def batches():
        for number in range(1, 5):
            events.append(f"made {number}")
            yield batch

    for _ in learner.take_steps(iter([batch]), 1, on_step=lambda tokens: None):
        pass  # compiled
    learner.position.steps = 0
    with jax.transfer_guard("disallow"):  # of what is moved without being asked to be
        for metrics in learner.take_steps(batches(), 4, on_step=lambda tokens: None):
            events.append(f"read {metrics['optimizer_step']}")
    assert events == ["made 1", "made 2", "made 3", "read 1", "made 4", "read 2", "read 3", "read 4"]
    assert learner.compilations == 3
