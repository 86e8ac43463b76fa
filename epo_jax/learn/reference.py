"""Frozen weights that a loss compares the learner with: those at the start of the rounds, or at the start of the present one.

They are kept beside the run's checkpoints, so that a run that continues in the middle of a round compares with the same weights as before.
A reference costs the memory of one more copy of the weights, in the compute dtype, and one more forward pass a step.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import BranchedBatch, ComparedBatch, TrajectoryBatch
from epo_jax.checkpoint import Checkpoints
from epo_jax.learn.step import dtype_of, make_scorer
from epo_jax.mesh import param_shardings
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.report.console import say


class Reference:
    """The frozen weights of one run, in `folder`. `freeze` or `restore` comes before `score`.

    each_round: freeze anew at the start of every round (else the first ones stay).
    """

    def __init__(self, config: ConfigDict, model: LlamaConfig, mesh: Mesh | None, folder: pathlib.Path, *, each_round: bool) -> None:
        self._model, self._mesh, self._each_round = model, mesh, each_round
        self._dtype = dtype_of(config.model.compute_dtype)
        # Two are kept: a run that was killed between freezing and saving continues in the round before.
        self._checkpoints = Checkpoints(folder, keep=2, say=say)
        self._scorer = make_scorer(model, mesh, compute_dtype=self._dtype)
        self._params: Any = None

    def freeze(self, params: Any, round: int) -> None:
        """Copies the weights that the 0-based `round` starts from, if they are its reference, and keeps them in the folder."""
        if round and not self._each_round:
            return
        shardings = None if self._mesh is None else param_shardings(self._model, self._mesh)
        self._params = None  # so that there are never two
        self._params = jax.jit(lambda params: jax.tree.map(lambda x: jnp.copy(x).astype(self._dtype), params), out_shardings=shardings)(params)
        self._checkpoints.save(round, self._params, {"model": self._model.to_hf(), "round": round})

    def restore(self, round: int) -> None:
        """What `freeze` kept for this round. Raises `UserError` if it is gone."""
        if self._mesh is None:
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shardings = jax.tree.map(lambda _: device, declare(self._model))
        else:
            shardings = param_shardings(self._model, self._mesh)
        wanted = jax.tree.map(
            lambda weight, sharding: jax.ShapeDtypeStruct(weight.shape, self._dtype, sharding=sharding), declare(self._model), shardings
        )
        self._params, _ = self._checkpoints.restore(wanted, step=round if self._each_round else 0)

    def score(self, batch: TrajectoryBatch | BranchedBatch) -> ComparedBatch:
        """The batch [A,B,T] with what the frozen weights think of it."""
        return ComparedBatch(**batch._asdict(), reference_logprobs=self._scorer(self._params, batch))
