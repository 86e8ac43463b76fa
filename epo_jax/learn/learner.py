"""The learner of a run: its state, where in the run it stands, and how both are saved and come back.

Two phases, each with an optimizer of its own: `warm_start` (cloning) and `rounds`. The position is saved with the state, so a
run continues from the optimizer step at which it was stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import TrajectoryBatch
from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.errors import NotFinite
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.choices import objective_of
from epo_jax.learn.losses import Loss, reinforce_loss
from epo_jax.learn.optimizer import make_optimizer
from epo_jax.learn.reference import Reference
from epo_jax.learn.step import DTYPES, Placed, TrainState, abstract_state, init_state, make_step
from epo_jax.mesh import describe_weights, param_shardings, shardings_of
from epo_jax.model import lora
from epo_jax.model.config import LlamaConfig
from epo_jax.model.fingerprint import fingerprint
from epo_jax.model.weights import declare
from epo_jax.report.console import say
from epo_jax.strategist import Strategist

PHASES = ("warm_start", "rounds")


@dataclasses.dataclass(frozen=True)
class Best:
    """Weights whose evaluation was among the best: rounds they had learned from, their mean outcome, and the checkpoint that holds them."""

    round: int
    outcome: float
    step: int


@dataclasses.dataclass
class Position:
    """Where a run stands.

    steps: optimizer steps done in this phase (warm start) or in this round. steps_before: optimizer steps of the phase before this
    round, which name the weights that it begins with. played_ahead: whether the round was played while the one before was learned from.
    saves: checkpoints begun so far. best: of the weights that were evaluated so far, the best first.
    """

    phase: str = "warm_start"
    round: int = 0
    steps: int = 0
    steps_before: int = 0
    played_ahead: bool = False
    saves: int = 0
    best: list[Best] = dataclasses.field(default_factory=list)

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
        self.position, self._saved = Position(), None  # `_saved`: the position that the newest checkpoint holds
        params, strategist.params = strategist.params, None  # the first step donates them: nobody else may hold them
        self._lora = lora.from_config(config.model.lora)
        self._frozen, self._base = None, ""  # with LoRA, the model's parameters and their name; else they are the state's
        if self._lora is not None:
            self._frozen, self._base = params, fingerprint(params)
            params = lora.init_adapters(self._model, self._lora, jax.random.key(config.seed))
        self._prepare()
        if self._checkpoints.latest() is None:
            self.state = init_state(params, self._model, self._optimizer, self._mesh, self._lora)
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
        ahead = self._next_batch(batches) if self.position.steps < total else None
        while ahead is not None:
            if self._stop.before_step():
                if late is not None:  # the step is saved, so it will not be taken again: its metrics are due now
                    yield self._on_host(*late)
                self.save_and_stop()
            placed, known = ahead
            if self._reference is not None and self.position.phase == "rounds":
                placed = placed._replace(batch=self._reference.score(placed.batch))
            self.state, metrics = self._step(self.state, placed)
            self.position.steps += 1
            ahead = self._next_batch(batches) if self.position.steps < total else None  # made while the device works
            known["optimizer_step"] = self.position.steps_before + self.position.steps
            if late is not None:
                yield self._on_host(*late)
            late = metrics, known
            on_step(known["read_tokens"])
            if every and self.position.steps % every == 0 and self.position.steps < total:
                self.save()  # the next step goes on while it is written
        if late is not None:
            yield self._on_host(*late)

    def _next_batch(self, batches: Iterator[TrajectoryBatch]) -> tuple[Placed, dict[str, float]]:
        """The next batch on its way to the devices, and what is known of it."""
        batch = next(batches)
        return self._step.put(batch), {"read_tokens": float(np.count_nonzero(batch.segment_ids))}

    def _on_host(self, metrics: dict[str, jax.Array], known: dict[str, float]) -> dict[str, float]:
        """A step's metrics as numbers. Raises `NotFinite` where the step could not be taken: it has changed nothing, and nothing more is saved."""
        found = {name: float(value) for name, value in jax.device_get(metrics).items()} | known
        if not (math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"])):
            raise NotFinite(
                f"optimizer step {known['optimizer_step']:.0f} has the loss {found['loss']} and a gradient of norm {found['grad_norm']}: learning has diverged. "
                f"The newest checkpoint in {self._checkpoints.folder} is from before; give another run a smaller learn.learning_rate."
            )
        return found

    def begin_rounds(self) -> None:
        """The warm start is over: a fresh optimizer for the rounds."""
        self._checkpoints.settle()  # what follows makes room for the next round, which a run that goes back to the checkpoint before would miss
        params = self.state.params
        self.position = Position(phase="rounds", saves=self.position.saves)
        self._prepare()
        self.state = init_state(params, self._model, self._optimizer, self._mesh, self._lora)
        if self._reference is not None:
            self._reference.freeze(self.exported_params(), 0)
        self.save(begins_round=True)

    def end_round(self, *, played_ahead: bool = False) -> None:
        """The round's steps are done; from here on its weights play. played_ahead: see `Position`."""
        self._checkpoints.settle()  # as in `begin_rounds`
        self.position.round += 1
        self.position.played_ahead = played_ahead
        self.position.steps_before += self.position.steps
        self.position.steps = 0
        if self._reference is not None:
            self._reference.freeze(self.exported_params(), self.position.round)
        self.save(begins_round=True)

    def keep_if_best(self, outcome: float) -> None:
        """Has the present weights outlast retention while no `checkpoint.keep_best` others were as good; the newest checkpoint holds them.

        Of equals the earlier one counts as better. NaN is no evaluation; a round that is evaluated again (a run that was stopped then) was counted.
        """
        found = self.position.best
        if math.isnan(outcome) or any(best.round == self.position.round for best in found):
            return
        mine = Best(self.position.round, outcome, self.position.saves)
        self.position.best = sorted([*found, mine], key=lambda best: -best.outcome)[: self._config.checkpoint.keep_best]
        self._keep_best()

    def end_run(self) -> None:
        """After the export: where the last evaluation found the present weights the best, no checkpoint says so yet, and this one does."""
        if self.position.best and self.position.best[0].step == self.position.saves and self.position != self._saved:
            self.save()
            self._checkpoints.settle()

    # --- what others need -------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """Names the weights that the present round begins with."""
        return f"step-{self.position.steps_before}"

    @property
    def compilations(self) -> int:
        return self._traces_before + self._step.traces

    @property
    def placement(self) -> list[str]:
        """How each kind of weight lies on the devices, in words; nothing where there is one device."""
        if self._mesh is None:
            return []
        learning = describe_weights(lora.declare(self._model, self._lora), self._mesh)
        frozen = [] if self._lora is None else describe_weights(declare(self._model), self._mesh)
        return [f"frozen {line}" for line in frozen] + learning

    def playing_params(self, *, copy: bool = False) -> Any:
        """The parameters in the dtype that playing computes in. In float32 they may be the state's own, gone after the next step, but for a copy."""
        params = self._plain_params(DTYPES[self._config.model.compute_dtype])
        return jax.tree.map(jnp.copy, params) if copy and params is self.state.params else params

    def exported_params(self) -> Any:
        """The model's parameters as learned so far, float32, with adapters merged into them; they may be the state's own."""
        return self._plain_params(jnp.float32)

    def _plain_params(self, dtype: Any) -> Any:
        if self._lora is None and dtype == jnp.float32:
            return self.state.params
        return plain_params(self._model, self._lora, dtype, self._mesh)(self.state.params, self._frozen)

    def final_params(self) -> Any:
        """What the run leaves: the parameters of the best round where it was kept, else the present ones, as `exported_params`.

        To make room for an earlier round's, the present state is given up: learning is over then. Raises `UserError` if its checkpoint is damaged.
        """
        self._checkpoints.settle()
        if not self.position.best or self.position.best[0].step == self.position.saves:
            return self.exported_params()
        best, self.state = self.position.best[0], None
        shardings = None if self._mesh is None else shardings_of(lora.declare(self._model, self._lora), self._mesh)
        _, params, _ = restore_params(self._checkpoints.folder, best.step, shardings=shardings)
        self.state = TrainState(params, None, None)
        return self.exported_params()

    # --- saving -----------------------------------------------------------------------------------------------------

    def save(self, *, begins_round: bool = False) -> None:
        """Takes a checkpoint of state and position; the one before stays until this one is whole. It is written while the run goes on, if the
        configuration says so; the next one waits for it, and raises what it came to. begins_round: one that `keep_every` may keep for good."""
        self.position.saves += 1
        every = self._config.checkpoint.keep_every
        record = {
            "position": dataclasses.asdict(self.position),
            "config": self._config.to_json_best_effort(),
            "model": self._model.to_hf(),
            "seed": self._config.seed,
            "keep": bool(begins_round and every and self.position.round % every == 0),
        }
        if self._lora is not None:
            record["lora"] = dataclasses.asdict(self._lora) | {"base": self._base, "source": self._config.model.source}
        self._checkpoints.begin(self.position.saves, self.state, record)
        self._saved = deepcopy(self.position)
        if not self._config.checkpoint.background:
            self._checkpoints.settle()

    def save_and_stop(self) -> None:
        """Where no step was taken since the newest checkpoint it is enough, and nothing is written: a large one takes longer than some notices give."""
        if self.position != self._saved:
            self.save()
        self._checkpoints.settle()
        say(f"stopped and saved in {self._checkpoints.folder}: {self.position}. The same command continues.")
        raise Stopped

    def _restore(self) -> None:
        """The newest whole checkpoint. Both phases' optimizers keep the same arrays, so either describes what was saved."""
        self.state, record = self._checkpoints.restore(abstract_state(self._model, self._optimizer, self._mesh, self._lora), model=self._model.to_hf())
        lora.check_base(record, self._base)
        saved = record["position"]
        self.position = Position(**saved | {"best": [Best(**best) for best in saved["best"]]})
        self._saved = deepcopy(self.position)
        self._keep_best()
        self._prepare()

    def _keep_best(self) -> None:
        self._checkpoints.outlasting = [best.step for best in self.position.best]

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
            lengths=() if (self._config.warm_start if warm else learn).packing else learn.length_buckets,
            objective=reinforce_loss if warm else self._objective,
            lora=self._lora,
            frozen=self._frozen,
        )


@functools.cache
def plain_params(model: LlamaConfig, adapted: lora.Lora | None, dtype: Any, mesh: Mesh | None) -> Callable[[Any, Any], Any]:
    """The program (what learns, what is frozen) -> the parameters of a plain model in `dtype`, each where its weight lies: no device ever has more
    than its own parts."""

    def plain(params: Any, frozen: Any) -> Any:
        whole = params if adapted is None else lora.merge(frozen, params, adapted)
        return jax.tree.map(lambda x: x.astype(dtype), whole)

    return jax.jit(plain, out_shardings=None if mesh is None else param_shardings(model, mesh))
