"""The stack of layers for training: a scan, what its backward pass computes again, and a backward pass that adds to a sum in place.

A learning step adds up gradients over its passes. Left to the transposition of the scan, the gradient of a pass is a second set of arrays as
large as the layers themselves, there for no other purpose than to be added. Where the sums stand beside the layers (`Summed`), the
backward pass adds each layer's gradient to them as soon as it has it, so that there is one set only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Layer = Callable[[jax.Array, Any], jax.Array]  # (x, one layer's weights) -> x
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Summed(NamedTuple):
    """The layers' weights [L, ...], and what their gradient is to be added to: the cotangent of `sums` is `sums` plus the gradient of `weights`,
    whose own cotangent is zero."""

    weights: Any
    sums: Any


def run(layer: Layer, layers: Any, x: jax.Array, remat: str) -> jax.Array:
    """x through all layers. `remat`: "none" keeps every intermediate value for the backward pass, "dots" the matrix products with weights,
    "full" only each layer's input. `layers` may be `Summed` with "full" alone."""
    if isinstance(layers, Summed):
        if remat != "full":
            raise ValueError(f"gradients are added in place with remat 'full' alone, not {remat!r}")
        return _summed(layer, layers.weights, layers.sums, x)
    if remat != "none":
        if remat not in POLICIES:
            raise ValueError(f"remat is 'none', 'dots' or 'full', not {remat!r}")
        layer = jax.checkpoint(layer, policy=POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(lambda x, weights: (layer(x, weights), None), x, layers)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(layer: Layer, weights: Any, sums: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, weights: (layer(x, weights), None), x, weights)[0]


def _forward(layer: Layer, weights: Any, sums: Any, x: jax.Array) -> tuple[jax.Array, tuple[Any, Any, jax.Array]]:
    x, inputs = jax.lax.scan(lambda x, weights: (layer(x, weights), x), x, weights)
    return x, (weights, sums, inputs)


def _backward(layer: Layer, saved: tuple[Any, Any, jax.Array], x_grad: jax.Array) -> tuple[None, Any, jax.Array]:
    weights, sums, inputs = saved
    count = inputs.shape[0]

    def back(done: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        x_grad, sums = carry
        here = count - 1 - done
        x, own = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, here, keepdims=False), (inputs, weights))
        x_grad, gradient = jax.vjp(layer, x, own)[1](x_grad)
        return x_grad, jax.tree.map(lambda total, more: total.at[here].add(more), sums, gradient)

    x_grad, sums = jax.lax.fori_loop(0, count, back, (x_grad, sums))
    return None, sums, x_grad


_summed.defvjp(_forward, _backward)
