"""A few optimizer steps of a tiny model on a mesh, and the weights that playing would get: the same program for one process and for several."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from epo_jax.batch import TrajectoryBatch, pad
from epo_jax.hosts import arrays, exchange
from epo_jax.learn.optimizer import Learning, make_optimizer
from epo_jax.learn.step import init_state, make_step
from epo_jax.mesh import param_shardings
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Weight, declare
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
ROWS, LENGTH, STEPS = 8, 24, 3


def learned(mesh: Mesh) -> dict[str, np.ndarray]:
    """Dotted name → array: what the parameters are after `STEPS` steps, and `own.` what this process's copy of them is."""
    optimizer = make_optimizer(Learning(learning_rate=1e-3), STEPS)
    state = init_state(initial(mesh), CONFIG, optimizer, mesh)
    step = make_step(CONFIG, optimizer, mesh, lengths=(LENGTH // 2, LENGTH))
    metrics = {}
    for batch in _batches():
        state, metrics = step(state, batch)
    return {f"metrics.{name}": np.asarray(value) for name, value in metrics.items()} | on_host(state.params, mesh)


def initial(mesh: Mesh) -> Any:
    """The parameters that learning starts from, on the mesh."""
    random = np.random.default_rng(1)

    def made(weight: Weight) -> np.ndarray:
        return np.ones(weight.shape, np.float32) if weight.std is None else (weight.std * random.normal(size=weight.shape)).astype(np.float32)

    return jax.tree.map(arrays.put, jax.tree.map(made, declare(CONFIG)), param_shardings(CONFIG, mesh))


def on_host(params: Any, mesh: Mesh) -> dict[str, np.ndarray]:
    """Dotted name → array, of the parameters (`params.`) and of this process's own copy of them (`own.`)."""
    own_mesh, found = arrays.own_mesh(mesh), {}
    own = arrays.own_copy(params, param_shardings(CONFIG, own_mesh), mesh)
    assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(own)) and own_mesh.size == mesh.size // exchange.count()
    for prefix, tree in (("params", params), ("own", own)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[".".join([prefix, *(entry.key for entry in path)])] = arrays.on_host(leaf)
    return found


def _batches() -> list[TrajectoryBatch]:
    """One a step, of other trajectories each; the last one is not full."""
    random = np.random.default_rng(0)
    trajectories = []
    for index in range(STEPS * ROWS - 3):
        turns = []
        for _ in range(2):
            said = random.integers(0, CONFIG.vocab_size, int(random.integers(2, 6))).tolist()
            read = random.integers(0, CONFIG.vocab_size, int(random.integers(1, 6))).tolist()
            turns.append(Turn(prompt_tokens=read, tokens=said, logprobs=[-4.0] * len(said), advantage=(-1.0) ** index * (1 + index % 3)))
        trajectories.append(Trajectory("test", "task", turns=turns))
    batches, _ = pad(trajectories, length_buckets=(LENGTH,), rows=ROWS, max_length=LENGTH, pad_id=0)
    return batches
