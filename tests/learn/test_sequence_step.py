"""The learning step on meshes that split the tokens of a row: what one device computes, and no device holding a whole row's activations."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.batch import TrajectoryBatch, pack
from epo_jax.learn import losses
from epo_jax.learn.critic import value_loss
from epo_jax.learn.scalar import ScalarBatch, ScalarModel
from epo_jax.learn.step import init_state, make_scorer, make_step
from epo_jax.mesh import make_mesh
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from tests.learn.test_step import ADVANTAGES, LENGTH, assert_close, parameters, run, sgd, trajectories_of

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)


def on(**shape: int) -> jax.sharding.Mesh:
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


@functools.cache
def packed() -> TrajectoryBatch:
    """Seven trajectories in rows of several, two rows a pass; most cross the end of a stretch."""
    trajectories = trajectories_of(ADVANTAGES)
    trajectories[2].turns[1].logprobs = []  # of which nobody knows the behaviour
    (batch,), _ = pack(trajectories, rows=4, accumulation=2, max_length=LENGTH, pad_id=0, ways=2)
    assert batch.segment_ids.max() > 1
    return batch


OPTIONS = {"entropy_weight": 0.1, "kl_weight": 0.3, "clip": (0.2, 0.2), "remat": "full"}


@pytest.mark.parametrize(
    "shape",
    [
        {"fsdp": 2, "sequence": 2, "tensor": 2},
        *(pytest.param({"sequence": ways}, marks=pytest.mark.slow) for ways in (2, 4, 8)),
    ],
    ids=lambda shape: "-".join(f"{axis}{size}" for axis, size in shape.items()),
)
def test_rows_on_several_devices_give_the_step_of_one(shape) -> None:
    """Loss, gradient and metrics, of packed rows with all terms of the loss, over several passes."""
    gradient, metrics = run(packed(), **OPTIONS)
    ours, our_metrics = run(packed(), mesh=on(**shape), **OPTIONS)
    assert_close(ours, gradient, atol=1e-5)
    assert_close(our_metrics, metrics, rtol=1e-5, atol=1e-5)
    assert metrics["grad_norm"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options"),
    [({"sliding_window": 5}, {}), ({"tie_embeddings": True}, {"chunk": 3, "remat": "dots"})],
    ids=["a window, nothing kept", "a tied head, chunks that do not divide"],
)
def test_the_variants_of_the_model_on_split_rows(change, options) -> None:
    config = dataclasses.replace(CONFIG, **change)
    one, one_metrics = run(packed(), config=config, **options)
    ours, metrics = run(packed(), config=config, mesh=on(data=2, sequence=2, tensor=2), **options)
    assert_close(ours, one, atol=1e-5)
    assert_close(metrics, one_metrics, rtol=1e-5, atol=1e-5)


def test_references_are_scored_on_split_rows() -> None:
    mesh = on(fsdp=2, sequence=4)
    params = jax.device_put(parameters())
    one = make_scorer(CONFIG)(params, packed())
    ours = make_scorer(CONFIG, mesh)(init_state(params, CONFIG, sgd(), mesh).params, packed())
    np.testing.assert_allclose(ours, one, atol=1e-5)
    assert np.asarray(one).min() < -1.0


@pytest.mark.slow
def test_a_critic_reads_and_learns_on_split_rows(tmp_path) -> None:
    """The number after every token, one update's loss and gradient norm, and the numbers after it."""
    batch, random = packed(), np.random.default_rng(0)
    weights = (batch.turn_ids > 0).astype(np.float32)
    targets, before = random.normal(size=(2, *weights.shape)).astype(np.float32)
    given = ScalarBatch(batch.tokens, batch.positions, batch.segment_ids, weights, targets, before)
    found = []
    for name, mesh in (("one", None), ("split", on(fsdp=2, sequence=4))):
        model = ScalarModel(CONFIG, value_loss(0.2), tmp_path / name, trunk=parameters(), learning_rate=1e-2, mesh=mesh)
        metrics = model.update(given)
        found.append((metrics, np.where(batch.segment_ids > 0, model.score(given), 0.0)))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert np.abs(found[0][1]).max() > 0.01


@pytest.mark.slow
def test_no_device_holds_the_activations_of_a_whole_row() -> None:
    """The largest array of the compiled pass is smaller than one vector of the model's width for each token of a row; scores [T,T] and gathered
    activations would be larger. (On one device they are there: the measure sees them.)"""
    config, length = dataclasses.replace(CONFIG, hidden_size=32, num_heads=2), 512
    whole_row = length * config.hidden_size

    def largest(mesh, rows: int = 1) -> int:
        step = make_step(config, sgd(), mesh, remat="full", chunk=32)
        params = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declare(config))
        kinds = (jnp.int32, jnp.int32, jnp.int32, jnp.float32, jnp.float32, jnp.int32)
        batch = TrajectoryBatch(*(jax.ShapeDtypeStruct((1, rows, length), kind) for kind in kinds))
        sums = jax.eval_shape(step.begin, params, batch)
        text = step.accumulate.lower(params, None, sums, batch, jax.ShapeDtypeStruct((), jnp.int32), length).compile().as_text()
        return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in re.findall(r"\w\d+\[(\d+(?:,\d+)*)\]", text))

    assert largest(None) >= whole_row
    assert largest(on(sequence=8)) < whole_row
    assert largest(on(fsdp=2, sequence=4), rows=2) < whole_row
