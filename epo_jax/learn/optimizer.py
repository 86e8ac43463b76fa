"""AdamW with warm-up, cosine or constant learning rate, and clipping by the global norm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from epo_jax.errors import UserError

SCHEDULES = ("cosine", "constant")


class LearningSettings(Protocol):
    """The fields of `config.learn` that are read here."""

    learning_rate: float  # at the peak
    schedule: str  # one of SCHEDULES
    warmup_ratio: float  # of all steps, in [0, 1)
    clip_norm: float  # of the whole gradient; 0: no clipping
    weight_decay: float
    beta1: float
    beta2: float


@dataclasses.dataclass(frozen=True)
class Learning:
    """The published settings (Llama-3-8B, AlfWorld and WebShop)."""

    learning_rate: float = 1e-6
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999


def make_schedule(learning: LearningSettings, total_steps: int) -> optax.Schedule:
    """Step (0-based) -> learning rate. Linear warm-up over ceil(warmup_ratio * total_steps) steps, then cosine to 0, or constant.

    Step 0 already learns (1 / (warm-up + 1) of the peak): a run of few steps has none to give away. Past `total_steps` a cosine stays at 0.
    """
    if learning.schedule not in SCHEDULES:
        raise UserError(f"there is no learning-rate schedule {learning.schedule!r}: choose one of {', '.join(SCHEDULES)}.")
    if not 0.0 <= learning.warmup_ratio < 1.0:
        raise UserError(f"the warm-up ratio is {learning.warmup_ratio}: give the share of all steps, at least 0 and below 1.")
    warmup = math.ceil(learning.warmup_ratio * total_steps)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = (step + 1) / (warmup + 1)
        if learning.schedule == "constant":
            after = jnp.ones_like(step)
        else:
            progress = jnp.clip((step - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
            after = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return learning.learning_rate * jnp.where(step < warmup, rising, after)

    return rate


def make_optimizer(learning: LearningSettings, total_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) on float32 masters. Weight decay spares the norms' scales.

    learning: `config.learn`, or `Learning()`. total_steps: optimizer steps from here to the end of the run, for warm-up and cosine.
    """
    clip = [_clip_by_global_norm(learning.clip_norm)] if learning.clip_norm else []
    return optax.chain(
        *clip,
        optax.adamw(
            make_schedule(learning, total_steps),
            b1=learning.beta1,
            b2=learning.beta2,
            weight_decay=learning.weight_decay,
            mask=_is_matrix,
        ),
    )


def global_norm(tree: Any) -> jax.Array:
    """The square root of the sum of all squares. As products of each array with itself: XLA on CPU would write the squares down before it adds them."""
    return jnp.sqrt(sum(jnp.tensordot(x, x, axes=x.ndim, precision="highest") for x in jax.tree.leaves(tree)))


def _clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """As optax's of that name, by a product with one factor: a quotient, as there, XLA does not compute again for the parameter and both of
    its moments; it keeps a clipped copy of the whole gradient."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        factor = jnp.minimum(1.0, largest / global_norm(updates))  # a gradient of 0 stays: min(1, inf)
        return jax.tree.map(lambda update: update * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_matrix(params: Any) -> Any:
    """By name, because stacked norms [L,D] have as many dimensions as a matrix."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(getattr(path[-1], "key", "")).endswith("norm"), params)
