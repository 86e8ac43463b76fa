"""The weights that playing reads, made from those that learning keeps: `config.rollout.weights`.

    compute    as they come, in the dtype that the model computes in
    bfloat16   cast, and playing computes in bfloat16
    int8       the matrices of the layers, and on one device the output head, in 8 bits with one scale for each output, by qwix, and what they are
               multiplied with in 8 bits with one scale for each token; embedding and norms as they come

Decoding is bound by the reading of weights, so fewer bytes are faster where the device multiplies them as they are. The
sampler then is another policy than the learner scores with: `logprob_gap` tells by how much.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import qwix

from epo_jax.errors import UserError
from epo_jax.model import llama
from epo_jax.model.weights import Params

WEIGHTS = ("compute", "bfloat16", "int8")

# The contracted axes of each stacked matrix: all others have a scale for each entry.
CONTRACTED = {"wq": (1,), "wk": (1,), "wv": (1,), "wo": (1, 2), "w_gate": (1,), "w_up": (1,), "w_down": (1,)}


def check(weights: str) -> None:
    if weights not in WEIGHTS:
        raise UserError(f"rollout.weights is {weights!r}: choose one of {', '.join(WEIGHTS)}.")


def compute_dtype(weights: str, model: jax.typing.DTypeLike) -> jnp.dtype:
    """What playing computes in, where the model computes in `model`."""
    return jnp.dtype(jnp.bfloat16 if weights == "bfloat16" else model)


def prepare(params: Params, weights: str) -> Params:
    """The parameters (epo_jax.model.weights) as playing reads them."""
    if weights == "compute":
        return params
    if weights == "bfloat16":
        return jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    layers = {name: _int8(array, CONTRACTED[name]) if name in CONTRACTED else array for name, array in params["layers"].items()}
    return {**params, "layers": layers}


def for_decoding(params: Params, weights: str, *, one_device: bool) -> tuple[list[Params], Params]:
    """As `llama.unstack`, of what `prepare` gave. On one device the output head is made as a product with few rows reads it fastest: an embedding
    table [V,D] that serves as head is turned to [D,V] (on CPU a tenth faster at one row, a quarter at eight, for V = 49 152), and
    int8 rounds it too."""
    layers, rest = llama.unstack(params)
    if one_device:
        head = rest["head"] if "head" in rest else rest["embed"].T
        rest["head"] = _int8(head, (0,)) if weights == "int8" else head
    return layers, rest


def _int8(array: jax.Array, contracted: tuple[int, ...]) -> qwix.QArray:
    channels = [axis for axis in range(array.ndim) if axis not in contracted]
    return qwix.quantize(array, jnp.int8, channelwise_axes=channels)
