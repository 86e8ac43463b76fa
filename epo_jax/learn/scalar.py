"""A Llama with a scalar head: one number after every token. A critic (what the rest of an episode is worth) and a discriminator are both one.

The head is a linear map of the last hidden state. The trunk is the model's own, learned with the head; or another's (the policy's), which the head
reads and does not change: its gradient stops there. Both learn by AdamW at a constant rate.

Shapes: A accumulation, B rows, T time, D model.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epo_jax.checkpoint import Checkpoints
from epo_jax.errors import NotFinite
from epo_jax.hosts import arrays
from epo_jax.learn.step import accumulated_sharding, dtype_of
from epo_jax.mesh import param_shardings
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.stretches import stretches
from epo_jax.report.console import say

PositionLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (scalars, targets, before), all [B,T] -> [B,T]


class ScalarBatch(NamedTuple):
    """Arrays [A,B,T]; entry t belongs to the number that is read off after token t.

    tokens, positions, segment_ids  int32    as in `batch.TrajectoryBatch`
    weights                         float32  how much the number counts in the loss; 0 where nobody asks
    targets                         float32  what it should be
    before                          float32  what it was when the batch was made, for losses that clip
    forks                           int32    as in `batch.BranchedBatch`, where rows branch
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    before: np.ndarray
    forks: np.ndarray | None = None


def scalars(head: Any, trunk: Any, config: LlamaConfig, batch: ScalarBatch, **options: Any) -> jax.Array:
    """The number after every token of a batch [B,T], float32; `options` as of `llama.hidden_states`."""
    hidden = llama.hidden_states(trunk, config, batch.tokens, batch.positions, batch.segment_ids, forks=batch.forks, **options)
    numbers = hidden.astype(jnp.float32) @ head["weight"] + head["bias"]
    return stretches(options.get("mesh"), batch.tokens.shape[1]).collect(numbers)


class ScalarModel:
    """Parameters, optimizer and compiled programs of one such model; it is kept in `folder` by `save`.

    trunk: the model's own weights, copied; None: every call is given another's, which stay as they are. loss: of each number.
    """

    def __init__(
        self,
        config: LlamaConfig,
        loss: PositionLoss,
        folder: pathlib.Path,
        *,
        trunk: Any | None,
        learning_rate: float,
        clip_norm: float = 1.0,
        mesh: Mesh | None = None,
        compute_dtype: Any = jnp.float32,
        remat: str = "none",
    ) -> None:
        self._config, self._loss, self._mesh = config, loss, mesh
        self._options = {"compute_dtype": dtype_of(compute_dtype), "remat": remat, "mesh": mesh}
        self._optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(learning_rate))
        self._checkpoints = Checkpoints(folder, keep=2, say=say)
        head = {"weight": np.zeros(config.hidden_size, np.float32), "bias": np.zeros((), np.float32)}
        params = {"head": head} | ({} if trunk is None else {"trunk": trunk})
        self._shardings = _shardings(config, params, mesh)
        copy = jax.jit(lambda params: jax.tree.map(lambda x: jnp.copy(x).astype(jnp.float32), params), out_shardings=self._shardings)
        self.params = copy(params)
        moments = jax.eval_shape(self._optimizer.init, self.params)
        self._moment_shardings = None if mesh is None else optax.tree_map_params(
            self._optimizer, lambda _, sharding: sharding, moments, self._shardings,
            transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
        )  # fmt: skip
        self.opt_state = jax.jit(self._optimizer.init, out_shardings=self._moment_shardings)(self.params)
        self._update = jax.jit(self._update_function, donate_argnums=(0, 1))
        self._score = jax.jit(self._score_function)

    def score(self, batch: ScalarBatch, trunk: Any | None = None) -> np.ndarray:
        """The numbers [A,B,T] on the host."""
        return arrays.on_host(self._score(self.params, trunk, self._placed(batch)))

    def update(self, batch: ScalarBatch, trunk: Any | None = None) -> dict[str, float]:
        """One step on the weighted mean of the loss; {"loss", "grad_norm"}, before it. Raises `NotFinite` where they are no finite numbers."""
        self.params, self.opt_state, metrics = self._update(self.params, self.opt_state, trunk, self._placed(batch))
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, found.values())):
            raise NotFinite(f"what learns in {self._checkpoints.folder} has diverged (loss {found['loss']}): give another run a smaller learning rate of it.")
        return found

    def save(self, number: int) -> None:
        """Keeps everything that learning changes, under this number."""
        self._checkpoints.save(number, {"params": self.params, "opt_state": self.opt_state}, {"model": self._config.to_hf(), "number": number})

    def restore(self, number: int) -> None:
        """What `save` kept under this number. Raises `UserError` if it is gone."""
        state = {"params": self.params, "opt_state": self.opt_state}
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        stored, _ = self._checkpoints.restore(wanted, step=number)
        self.params, self.opt_state = stored["params"], stored["opt_state"]

    def saved(self) -> int | None:
        """The newest number that is kept whole."""
        return self._checkpoints.latest()

    # --- programs ---------------------------------------------------------------------------------------------------

    def _score_function(self, params: Any, trunk: Any | None, batch: ScalarBatch) -> jax.Array:
        def rows(batch: ScalarBatch) -> jax.Array:
            return scalars(params["head"], params.get("trunk", trunk), self._config, batch, **self._options)

        return jax.lax.map(rows, batch)

    def _update_function(self, params: Any, opt_state: Any, trunk: Any | None, batch: ScalarBatch) -> tuple[Any, Any, dict[str, jax.Array]]:
        total = jnp.maximum(jnp.sum(batch.weights), 1e-9)

        def objective(params: Any, rows: ScalarBatch) -> jax.Array:
            found = scalars(params["head"], params.get("trunk", trunk), self._config, rows, **self._options)
            return jnp.sum(rows.weights * self._loss(found, rows.targets, rows.before)) / total

        def accumulate(sums: tuple[jax.Array, Any], rows: ScalarBatch) -> tuple[tuple[jax.Array, Any], None]:
            loss, gradient = jax.value_and_grad(objective)(params, rows)
            return (sums[0] + loss, jax.tree.map(jnp.add, sums[1], gradient)), None

        (loss, gradient), _ = jax.lax.scan(accumulate, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), batch)
        if self._shardings is not None:
            gradient = jax.lax.with_sharding_constraint(gradient, self._shardings)
        updates, opt_state = self._optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": loss, "grad_norm": optax.tree.norm(gradient)}

    def _placed(self, batch: ScalarBatch) -> ScalarBatch:
        return batch if self._mesh is None else arrays.put(batch, accumulated_sharding(self._mesh))


def _shardings(config: LlamaConfig, params: Any, mesh: Mesh | None) -> Any:
    if mesh is None:
        return None
    everywhere = NamedSharding(mesh, PartitionSpec())
    return {"head": jax.tree.map(lambda _: everywhere, params["head"])} | ({"trunk": param_shardings(config, mesh)} if "trunk" in params else {})
