"""A state of a run as checkpoints hold it, small, and what tests ask of one that came back."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MODEL = {"num_layers": 2, "rope": {"theta": 10000.0}}


class State(NamedTuple):
    params: dict[str, Any]
    opt_state: Any
    step: Any
    key: Any
    seed: int
    host: Any


def make_state(value: float, *, width: int = 8, dtype: Any = jnp.float32) -> State:
    params = {
        "embed": jnp.full((16, width), value, dtype),
        "layers": {"wq": jax.random.normal(jax.random.key(int(value)), (2, width, 4)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(value, x.dtype), optimizer.init(params))
    return State(params, opt_state, jnp.int32(value), jax.random.split(jax.random.key(int(value)), 3), 2**40 + int(value), np.array([2**60 + 1, int(value)]))


def abstract(state: State) -> State:
    on_device = jax.eval_shape(lambda: state._replace(seed=None, host=None))
    return on_device._replace(seed=0, host=np.zeros_like(state.host))


def assert_same(state: State, other: State) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
        assert getattr(left, "dtype", type(left)) == getattr(right, "dtype", type(right))
        if jnp.issubdtype(getattr(left, "dtype", np.int32), jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def newest_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The largest file of a step's arrays."""
    return max((folder / f"step_{step:010d}" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
