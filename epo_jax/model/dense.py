"""The product of activations with a weight matrix, with its backward pass written out.

Left to itself, XLA on CPU computes the weight's gradient from a transposed copy of the incoming gradient, recomputing in
that copy whatever produced it (the exponential of SwiGLU, say). Contracting both arguments over their leading dimensions
needs no copy: forward and backward of a feed-forward block take 30 % less time on 2 cores.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import qwix
from jax import lax


@jax.custom_vjp
def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., I], weight [I, O], of one dtype -> [..., O]."""
    return lax.dot_general(x, weight, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, weight), (x, weight)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    leading = tuple(range(x.ndim - 1))
    x_grad = lax.dot_general(grad, weight, (((x.ndim - 1,), (1,)), ((), ())))
    weight_grad = lax.dot_general(x, grad, ((leading, leading), ((), ())))
    return x_grad, weight_grad


matmul.defvjp(_forward, _backward)


def project(x: jax.Array, weight: jax.Array | qwix.QArray) -> jax.Array:
    """x [..., D], weight [D, heads, H] -> [..., heads, H], as one two-dimensional product."""
    width, heads, head_dim = weight.shape
    return linear(x, weight.reshape(width, heads * head_dim)).reshape(*x.shape[:-1], heads, head_dim)


def linear(x: jax.Array, weight: jax.Array | qwix.QArray) -> jax.Array:
    """x [..., I], weight [I, O] of any float dtype, or of integers with a scale for each output -> [..., O] in x's dtype."""
    if isinstance(weight, qwix.QArray):  # scaled after the product: O multiplications, not I·O
        return matmul(x, weight.qvalue.astype(x.dtype)) * weight.scale[0].astype(x.dtype)
    return matmul(x, weight.astype(x.dtype))
