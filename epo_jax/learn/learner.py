"""The learner of a run: its state, where in the run it stands, and how both are saved and come back.

Two phases, each with an optimizer of its own: `warm_start` (cloning) and `rounds`. The position is saved with the state, so a
run continues from the optimizer step at which it was stopped.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import TrajectoryBatch
from epo_jax.checkpoint import Checkpoints
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.choices import objective_of
from epo_jax.learn.losses import Loss, reinforce_loss
from epo_jax.learn.optimizer import make_optimizer
from epo_jax.learn.reference import Reference
from epo_jax.learn.step import DTYPES, TrainState, accumulated_sharding, init_state, make_step, state_shardings
from epo_jax.mesh import param_shardings
from epo_jax.model.weights import declare
from epo_jax.report.console import say
from epo_jax.strategist import Strategist

PHASES = ("warm_start", "rounds")


@dataclasses.dataclass
class Position:
    """Where a run stands.

    steps: optimizer steps done in this phase (warm start) or in this round. steps_before: optimizer steps of the phase before this
    round, which name the weights that it begins with. played_ahead: whether the round was played while the one before was learned from.
    saves: checkpoints written so far.
    """

    phase: str = "warm_start"
    round: int = 0
    steps: int = 0
    steps_before: int = 0
    played_ahead: bool = False
    saves: int = 0

    def __str__(self) -> str:
        if self.phase == "warm_start":
            return f"warm start, after {self.steps} optimizer steps"
        return f"round {self.round + 1}, after {self.steps} of its optimizer steps"


class Learner:
    """State, step and checkpoints. `totals` says how many optimizer steps each phase will take, for warm-up and cosine."""

    def __init__(
        self,
        config: ConfigDict,
        strategist: Strategist,
        mesh: Mesh,
        folder: pathlib.Path,
        stop: StopRequest,
        totals: dict[str, int],
        objective: Loss | None = None,
        reference: str | None = None,
    ) -> None:
        """objective, reference (one of `choices.REFERENCES`): of the rounds' steps, what `config.learn` says if None."""
        self._config, self._stop, self._totals = config, stop, totals
        self._model = strategist.config
        self._mesh = mesh if mesh.size > 1 else None
        self._objective = objective or objective_of(config.learn)
        self._reference = self._make_reference(folder, reference or config.learn.kl_reference)
        self._checkpoints = Checkpoints(folder, keep=config.checkpoint.keep, say=say)
        self._traces_before = 0
        self.position = Position()
        params, strategist.params = strategist.params, None  # the first step donates them: nobody else may hold them
        self._prepare()
        if self._checkpoints.latest() is None:
            self.state = init_state(params, self._model, self._optimizer, self._mesh)
        else:
            del params
            self._restore()
            if self._reference is not None and self.position.phase == "rounds":
                self._reference.restore(self.position.round)

    # --- learning ---------------------------------------------------------------------------------------------------

    def take_steps(self, batches: Iterator[TrajectoryBatch], total: int, on_step: Callable[[float], None]) -> Iterator[dict[str, float]]:
        """Steps until `total` are done in this round or phase; yields each step's metrics, one step late, so that the device never waits.

        `on_step(tokens)` hears at once of each step, and how many tokens it read. A request to stop saves and raises `Stopped`.
        Metrics: those of `learn.step`, and `optimizer_step` and `read_tokens`.
        """
        late: tuple[dict[str, jax.Array], dict[str, float]] | None = None
        every = self._config.checkpoint.every_steps
        while self.position.steps < total:
            if self._stop.requested:
                if late is not None:  # the step is saved, so it will not be taken again: its metrics are due now
                    yield _on_host(*late)
                self.save_and_stop()
            batch = next(batches)
            known = {"read_tokens": float(np.count_nonzero(batch.segment_ids))}
            on_device = batch if self._mesh is None else jax.device_put(batch, accumulated_sharding(self._mesh))
            if self._reference is not None and self.position.phase == "rounds":
                on_device = self._reference.score(on_device)
            self.state, metrics = self._step(self.state, on_device)
            self.position.steps += 1
            known["optimizer_step"] = self.position.steps_before + self.position.steps
            if late is not None:
                yield _on_host(*late)
            late = metrics, known
            on_step(known["read_tokens"])
            if every and self.position.steps % every == 0 and self.position.steps < total:
                self.save()
        if late is not None:
            yield _on_host(*late)

    def begin_rounds(self) -> None:
        """The warm start is over: a fresh optimizer for the rounds."""
        params = self.state.params
        self.position = Position(phase="rounds", saves=self.position.saves)
        self._prepare()
        self.state = init_state(params, self._model, self._optimizer, self._mesh)
        if self._reference is not None:
            self._reference.freeze(self.state.params, 0)
        self.save()

    def end_round(self, *, played_ahead: bool = False) -> None:
        """The round's steps are done; from here on its weights play. played_ahead: see `Position`."""
        self.position.round += 1
        self.position.played_ahead = played_ahead
        self.position.steps_before += self.position.steps
        self.position.steps = 0
        if self._reference is not None:
            self._reference.freeze(self.state.params, self.position.round)
        self.save()

    # --- what others need -------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """Names the weights that the present round begins with."""
        return f"step-{self.position.steps_before}"

    @property
    def compilations(self) -> int:
        return self._traces_before + self._step.traces

    def playing_params(self, *, copy: bool = False) -> Any:
        """The parameters in the dtype that playing computes in. In float32 they are the state's own, gone after the next step, but for a copy."""
        dtype = DTYPES[self._config.model.compute_dtype]
        if dtype == jnp.float32:
            return jax.tree.map(jnp.copy, self.state.params) if copy else self.state.params
        shardings = None if self._mesh is None else param_shardings(self._model, self._mesh)
        return jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype), params), out_shardings=shardings)(self.state.params)

    # --- saving -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint of state and position; the one before stays until this one is whole."""
        self.position.saves += 1
        record = {
            "position": dataclasses.asdict(self.position),
            "config": self._config.to_json_best_effort(),
            "model": self._model.to_hf(),
            "seed": self._config.seed,
        }
        self._checkpoints.save(self.position.saves, self.state, record)

    def save_and_stop(self) -> None:
        self.save()
        say(f"stopped and saved in {self._checkpoints.folder}: {self.position}. The same command continues.")
        raise Stopped

    def _restore(self) -> None:
        """The newest whole checkpoint. Both phases' optimizers keep the same arrays, so either describes what was saved."""
        self.state, record = self._checkpoints.restore(self._abstract_state(), model=self._model.to_hf())
        self.position = Position(**record["position"])
        self._prepare()

    def _abstract_state(self) -> TrainState:
        params = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declare(self._model))
        state = TrainState(params, jax.eval_shape(self._optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
        if self._mesh is None:
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shardings = jax.tree.map(lambda _: device, state)
        else:
            shardings = state_shardings(self._model, self._optimizer, self._mesh)
        return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings)

    def _make_reference(self, folder: pathlib.Path, which: str) -> Reference | None:
        if which == "behaviour":
            return None
        return Reference(self._config, self._model, self._mesh, folder.parent / "reference", each_round=which == "round")

    def _prepare(self) -> None:
        """Optimizer and step of the present phase."""
        warm = self.position.phase == "warm_start"
        learn = self._config.learn.copy_and_resolve_references()
        if warm:
            for name in ("learning_rate", "warmup_ratio", "beta2", "schedule"):
                learn[name] = self._config.warm_start[name]
        self._optimizer: optax.GradientTransformation = make_optimizer(learn, self._totals[self.position.phase])
        if hasattr(self, "_step"):
            self._traces_before += self._step.traces
        self._step = make_step(
            self._model,
            self._optimizer,
            self._mesh,
            compute_dtype=self._config.model.compute_dtype,
            remat=self._config.model.remat,
            objective=reinforce_loss if warm else self._objective,
        )


def _on_host(metrics: dict[str, jax.Array], known: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()} | known
