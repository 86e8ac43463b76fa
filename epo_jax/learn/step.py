"""The jit-compiled learning step: gradient of the loss over an accumulated batch, and one AdamW update, in place.

    optimizer = make_optimizer(config.learn, total_steps)
    state = init_state(params, model_config, optimizer, mesh)
    step = make_step(model_config, optimizer, mesh)
    state, metrics = step(state, batch)          # batch [A,B,T]; the old state is gone (donated)

Shapes: A accumulation, B rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epo_jax.batch import TrajectoryBatch
from epo_jax.errors import UserError
from epo_jax.learn import losses
from epo_jax.mesh import batch_sharding, param_shardings
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class TrainState(NamedTuple):
    """Everything that a step changes: float32 master parameters, the optimizer's moments, and the number of steps taken (int32)."""

    params: Any
    opt_state: optax.OptState
    step: jax.Array


def init_state(params: Any, config: LlamaConfig, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """A state at step 0. On a mesh everything lies as `state_shardings` says; the moments are made there, never in one place.

    The state takes `params` over (the first step donates them): pass a copy of what is still needed.
    """
    shardings = None if mesh is None else state_shardings(config, optimizer, mesh)
    if shardings is not None:
        params = jax.device_put(params, shardings.params)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    opt_state = jax.jit(optimizer.init, out_shardings=None if shardings is None else shardings.opt_state)(params)
    count = jnp.zeros((), jnp.int32)
    return TrainState(params, opt_state, count if shardings is None else jax.device_put(count, shardings.step))


def state_shardings(config: LlamaConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each array of the state lives: parameters by `mesh.param_shardings`, moments like their parameters, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(config, mesh)
    arrays = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.float32), declare(config))
    opt_state = jax.eval_shape(optimizer.init, arrays)
    moments = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, opt_state, params, transform_non_params=lambda _: everywhere
    )
    return TrainState(params, moments, everywhere)


class Step:
    """A compiled step, called as step(state, batch) -> (state, metrics). `traces` counts how often it was traced (once a shape)."""

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


def make_step(
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    chunk: int | None = None,
    objective: losses.Loss = losses.reinforce_loss,
) -> Step:
    """step(state, batch [A,B,T]) -> (state, metrics), for an objective that is a sum over rows. The state is donated: its old arrays are deleted.

    The gradient is that of the loss summed over all A*B rows, divided by the number of trajectories in them (an empty row counts for
    nothing), so it does not depend on how rows are spread over A and B. It is accumulated in float32 over A, up to the last pass that holds
    something: empty passes at the end cost nothing. On a mesh B must be a multiple of data * fsdp. Metrics are float32 scalars that stay
    on the device (reading one waits for the step): those of `losses.policy_metrics`, and
      loss       the objective, a mean over trajectories
      grad_norm  global norm of the gradient before clipping
      trajectories
    """
    compute_dtype = dtype_of(compute_dtype)

    def row_sum(params: Any, batch: TrajectoryBatch) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logprobs, entropies = losses.token_logprobs(
            params, config, batch, compute_dtype=compute_dtype, remat=remat, chunk=chunk, mesh=mesh
        )
        return objective(batch, logprobs, entropies), (logprobs, entropies)

    def step(state: TrainState, batch: TrajectoryBatch) -> tuple[TrainState, losses.Metrics]:
        Sums = tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]  # loss, gradient, and what each token scored

        def accumulate(index: jax.Array, sums: Sums) -> Sums:
            loss, total, scored = sums
            rows = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, index, keepdims=False), batch)
            (more, found), gradient = jax.value_and_grad(row_sum, has_aux=True)(state.params, rows)
            gradient = jax.tree.map(jnp.add, total, gradient)
            if shardings is not None:  # each device keeps its shard of the sum only
                gradient = jax.lax.with_sharding_constraint(gradient, shardings.params)
            return loss + more, gradient, jax.tree.map(lambda whole, part: whole.at[index].set(part), scored, found)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        unscored = jnp.zeros(batch.tokens.shape, jnp.float32)
        # The last passes may be empty: a packed step needs fewer than its shape has, and the last step of an epoch holds what is left.
        holds_something = jnp.any(batch.segment_ids > 0, axis=(1, 2))
        passes = jnp.max(jnp.where(holds_something, jnp.arange(1, len(holds_something) + 1), 0))
        loss, gradient, (logprobs, entropies) = jax.lax.fori_loop(0, passes, accumulate, (jnp.zeros(()), zeros, (unscored, unscored)))
        trajectories = jnp.sum(losses.trajectories_in(batch)).astype(jnp.float32)
        gradient = jax.tree.map(lambda g: g / jnp.maximum(1.0, trajectories), gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = losses.policy_metrics(batch, logprobs, entropies) | {
            "loss": loss / jnp.maximum(1.0, trajectories),
            "grad_norm": optax.tree.norm(gradient),
            "trajectories": trajectories,
        }
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), metrics

    if mesh is None:
        shardings = None
        return Step(step, donate_argnums=0)
    shardings = state_shardings(config, optimizer, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return Step(step, donate_argnums=0, in_shardings=(shardings, accumulated_sharding(mesh)), out_shardings=(shardings, everywhere))


def make_scorer(
    config: LlamaConfig, mesh: Mesh | None = None, *, compute_dtype: Any = jnp.float32, chunk: int | None = None
) -> Step:
    """score(params, batch [A,B,T]) -> log-probabilities of the sampled tokens [A,B,T] float32, 0 elsewhere. Nothing is donated."""
    compute_dtype = dtype_of(compute_dtype)

    def score(params: Any, batch: TrajectoryBatch) -> jax.Array:
        def rows(batch: TrajectoryBatch) -> jax.Array:
            return losses.token_logprobs(params, config, batch, compute_dtype=compute_dtype, chunk=chunk, mesh=mesh)[0]

        return jax.lax.map(rows, batch)

    if mesh is None:
        return Step(score)
    sharding = accumulated_sharding(mesh)
    return Step(score, in_shardings=(param_shardings(config, mesh), sharding), out_shardings=sharding)


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
