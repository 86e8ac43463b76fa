"""The learning step: gradient of the loss, summed over the passes of an accumulated batch, and one AdamW update, in place.

    optimizer = make_optimizer(config.learn, total_steps)
    state = init_state(params, model_config, optimizer, mesh)
    step = make_step(model_config, optimizer, mesh, lengths=(256, 512, 1024))
    state, metrics = step(state, batch)          # batch [A,B,T]; the old state is gone (donated)

A step is several compiled programs: one pass forward and backward, compiled once for each length, and what goes before and after the
passes. So every pass is as long as its own rows need, while the number of compilations stays that of the lengths.

Shapes: A accumulation, B rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epo_jax.batch import TrajectoryBatch, pass_lengths
from epo_jax.errors import UserError
from epo_jax.hosts import arrays
from epo_jax.learn import losses
from epo_jax.learn.optimizer import global_norm
from epo_jax.mesh import batch_sharding, param_shardings, shardings_of
from epo_jax.model.config import LlamaConfig
from epo_jax.model.lora import Lora, attach, declare
from epo_jax.model.stack import Summed

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class TrainState(NamedTuple):
    """Everything that a step changes: the float32 parameters that learn (all, or LoRA's adapters), the optimizer's moments, and the number
    of steps taken (int32)."""

    params: Any
    opt_state: optax.OptState
    step: jax.Array


def init_state(
    params: Any, config: LlamaConfig, optimizer: optax.GradientTransformation, mesh: Mesh | None = None, lora: Lora | None = None
) -> TrainState:
    """A state at step 0. On a mesh everything lies as `state_shardings` says; the moments are made there, never in one place.

    The state takes `params` over (the first step donates them): pass a copy of what is still needed.
    """
    shardings = None if mesh is None else state_shardings(config, optimizer, mesh, lora)
    if shardings is not None:
        params = jax.device_put(params, shardings.params)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    opt_state = jax.jit(optimizer.init, out_shardings=None if shardings is None else shardings.opt_state)(params)
    return TrainState(params, opt_state, arrays.put(np.zeros((), np.int32), None if shardings is None else shardings.step))


def state_shardings(config: LlamaConfig, optimizer: optax.GradientTransformation, mesh: Mesh, lora: Lora | None = None) -> TrainState:
    """Where each array of the state lives: parameters by the mesh's rules, moments like their parameters, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    declared = declare(config, lora)
    params = shardings_of(declared, mesh)
    arrays = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declared)
    opt_state = jax.eval_shape(optimizer.init, arrays)
    moments = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, opt_state, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(params, moments, everywhere)


def abstract_state(config: LlamaConfig, optimizer: optax.GradientTransformation, mesh: Mesh | None = None, lora: Lora | None = None) -> TrainState:
    """The state as shapes, dtypes and shardings, without an array; without a mesh, on the default device."""
    params = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declare(config, lora))
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, state)
    else:
        shardings = state_shardings(config, optimizer, mesh, lora)
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings)


class Counted:
    """A jitted function. `traces` counts how often it was traced: once for each shape of its arguments."""

    def __init__(self, function: Callable[..., Any], **jit_options: Any) -> None:
        self.traces = 0

        def counted(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        self._jitted = jax.jit(counted, **jit_options)

    def __call__(self, *arguments: Any) -> Any:
        return self._jitted(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """For inspection, with arrays or `jax.ShapeDtypeStruct`s."""
        return self._jitted.lower(*arguments)


class Sums(NamedTuple):
    """What the passes of one optimizer step have come to so far: loss and gradient, each row's share of the mean over the step's trajectories,
    and what each token scored [A,B,T]."""

    loss: jax.Array
    gradient: Any
    logprobs: jax.Array
    entropies: jax.Array


class Placed(NamedTuple):
    """A batch [A,B,T] on its devices, and the passes that hold something: which of A it is (a scalar there), and its length in tokens."""

    batch: TrajectoryBatch
    passes: tuple[tuple[jax.Array, int], ...]


class Step:
    """step(state, batch) -> (state, metrics), as `make_step` describes it."""

    def __init__(
        self, begin: Counted, accumulate: Counted, finish: Counted, *, frozen: Any, lengths: Sequence[int], mesh: Mesh | None
    ) -> None:
        self.begin, self.accumulate, self.finish, self.frozen = begin, accumulate, finish, frozen
        self._lengths, self._mesh = sorted(lengths), mesh

    def __call__(self, state: TrainState, batch: TrajectoryBatch | Placed) -> tuple[TrainState, losses.Metrics]:
        placed = batch if isinstance(batch, Placed) else self.put(batch)
        sums = self.begin(state.params, placed.batch)
        for index, length in placed.passes:
            sums = self.accumulate(state.params, self.frozen, sums, placed.batch, index, length)
        return self.finish(state, sums, placed.batch)

    @property
    def traces(self) -> int:
        """How many programs were traced so far."""
        return self.begin.traces + self.accumulate.traces + self.finish.traces

    def put(self, batch: TrajectoryBatch) -> Placed:
        """A batch of numpy arrays on its way to the devices; nothing waits for its arrival. Each pass is cut to the smallest of the lengths that holds it."""
        everywhere, divided = (None, None) if self._mesh is None else (NamedSharding(self._mesh, PartitionSpec()), accumulated_sharding(self._mesh))
        lengths = pass_lengths(batch, self._lengths)
        passes = tuple((arrays.put(np.asarray(index, np.int32), everywhere), length) for index, length in enumerate(lengths) if length)
        return Placed(arrays.put(batch, divided), passes)


def make_step(
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    chunk: int | None = None,
    lengths: Sequence[int] = (),
    objective: losses.Loss = losses.reinforce_loss,
    lora: Lora | None = None,
    frozen: Any = None,
) -> Step:
    """step(state, batch [A,B,T]) -> (state, metrics), for an objective that is a sum over rows. The state is donated: its old arrays are deleted.

    The gradient is that of the loss summed over all A*B rows, divided by the number of trajectories in them (an empty row counts for
    nothing), so it does not depend on how rows are spread over A and B. It is accumulated in float32 over the passes that hold something.
    `lengths` (tokens) are those that a pass may be cut to; none: T. With `lora`, the state's parameters are adapters, and `frozen` are the
    model's, on their devices. On a mesh B must be a multiple of data * fsdp. Metrics are float32 scalars that stay on the device (reading one
    waits for the step): those of `losses.policy_metrics`, and
      loss       the objective, a mean over trajectories
      grad_norm  global norm of the gradient before clipping; where it is not finite the state stays as it was
      trajectories
    """
    compute_dtype = dtype_of(compute_dtype)

    def trajectories_of(batch: TrajectoryBatch) -> jax.Array:
        return jnp.sum(losses.trajectories_in(batch)).astype(jnp.float32)

    def row_sum(params: Any, frozen: Any, batch: TrajectoryBatch, share: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        if lora is not None:
            params = attach(frozen, params, lora)
        logprobs, entropies = losses.token_logprobs(
            params, config, batch, compute_dtype=compute_dtype, remat=remat, chunk=chunk, mesh=mesh
        )
        return share * objective(batch, logprobs, entropies), (logprobs, entropies)

    def summed_gradient(params: Any, frozen: Any, total: Any, rows: TrajectoryBatch, share: jax.Array) -> tuple[Any, Any]:
        """The value of `row_sum`, and `total` plus its gradient; where the layers' is computed layer by layer, it is added there."""
        if lora is not None or remat != "full":
            value, gradient = jax.value_and_grad(row_sum, has_aux=True)(params, frozen, rows, share)
            return value, jax.tree.map(jnp.add, total, gradient)
        rest, rest_total = ({name: array for name, array in tree.items() if name != "layers"} for tree in (params, total))

        def in_place(rest: Any, layers_total: Any) -> Any:
            return row_sum(rest | {"layers": Summed(params["layers"], layers_total)}, frozen, rows, share)

        value, (gradient, layers) = jax.value_and_grad(in_place, argnums=(0, 1), has_aux=True)(rest, total["layers"])
        return value, jax.tree.map(jnp.add, rest_total, gradient) | {"layers": layers}

    def begin(params: Any, batch: TrajectoryBatch) -> Sums:
        unscored = jnp.zeros(batch.tokens.shape, jnp.float32)
        return Sums(jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), unscored, unscored)

    def accumulate(params: Any, frozen: Any, sums: Sums, batch: TrajectoryBatch, index: jax.Array, length: int) -> Sums:
        share = 1.0 / jnp.maximum(1.0, trajectories_of(batch))
        rows = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, index, keepdims=False)[:, :length], batch)
        (loss, (logprobs, entropies)), gradient = summed_gradient(params, frozen, sums.gradient, rows, share)
        return Sums(
            sums.loss + loss,
            gradient,
            sums.logprobs.at[index, :, :length].set(logprobs),
            sums.entropies.at[index, :, :length].set(entropies),
        )

    def finish(state: TrainState, sums: Sums, batch: TrajectoryBatch) -> tuple[TrainState, losses.Metrics]:
        norm = global_norm(sums.gradient)
        updates, opt_state = optimizer.update(sums.gradient, state.opt_state, state.params)
        metrics = losses.policy_metrics(batch, sums.logprobs, sums.entropies) | {
            "loss": sums.loss,
            "grad_norm": norm,
            "trajectories": trajectories_of(batch),
        }
        taken = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), taken, state), metrics

    if mesh is None:
        return Step(
            Counted(begin),
            Counted(accumulate, donate_argnums=2, static_argnums=5),
            Counted(finish, donate_argnums=0),
            frozen=frozen, lengths=lengths, mesh=None,
        )  # fmt: skip
    state, rows, everywhere = state_shardings(config, optimizer, mesh, lora), accumulated_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    sums = Sums(everywhere, state.params, rows, rows)  # of the gradient's sum, each device keeps its shard only
    return Step(
        Counted(begin, in_shardings=(state.params, rows), out_shardings=sums),
        Counted(
            accumulate, donate_argnums=2, static_argnums=5, out_shardings=sums,
            in_shardings=(state.params, None if lora is None else param_shardings(config, mesh), sums, rows, everywhere),
        ),
        Counted(finish, donate_argnums=0, in_shardings=(state, sums, rows), out_shardings=(state, everywhere)),
        frozen=frozen, lengths=lengths, mesh=mesh,
    )  # fmt: skip


def make_scorer(
    config: LlamaConfig, mesh: Mesh | None = None, *, compute_dtype: Any = jnp.float32, chunk: int | None = None
) -> Counted:
    """score(params, batch [A,B,T]) -> log-probabilities of the sampled tokens [A,B,T] float32, 0 elsewhere. Nothing is donated."""
    compute_dtype = dtype_of(compute_dtype)

    def score(params: Any, batch: TrajectoryBatch) -> jax.Array:
        def rows(batch: TrajectoryBatch) -> jax.Array:
            return losses.token_logprobs(params, config, batch, compute_dtype=compute_dtype, chunk=chunk, mesh=mesh)[0]

        return jax.lax.map(rows, batch)

    if mesh is None:
        return Counted(score)
    sharding = accumulated_sharding(mesh)
    return Counted(score, in_shardings=(param_shardings(config, mesh), sharding), out_shardings=sharding)


def accumulated_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [A,B,...]: every device sees all of A, and its own rows of B."""
    return NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))


def dtype_of(name: Any) -> Any:
    """A dtype, or its name as a configuration spells it."""
    if isinstance(name, str):
        if name not in DTYPES:
            raise UserError(f"the compute dtype {name!r} is not supported: choose one of {', '.join(DTYPES)}.")
        return DTYPES[name]
    return name
