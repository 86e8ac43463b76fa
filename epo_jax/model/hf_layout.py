"""How Hugging Face names and shapes the tensors of a Llama, one to one with our parameters.

A linear layer of torch stores [out, in]; ours are [in, out] with heads as a dimension of their own, and stacked over layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Params, Weight, declare


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file, and where it goes: `path` in the parameters, and the layer for a stacked weight.

    Seen from ours [d0, d1, ...] (without the layer), theirs is: the first `inputs` dimensions flattened to one, the rest
    flattened to another, and the two swapped (`inputs` = 1 for wq [D,N,H] -> [N*H, D], 2 for wo [N,H,D] -> [D, N*H]).
    `inputs` = 0: stored as it is.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    ours: tuple[int, ...]
    inputs: int

    @property
    def theirs(self) -> tuple[int, ...]:
        """The shape in the file."""
        if self.inputs == 0:
            return self.ours
        return (int(np.prod(self.ours[self.inputs :])), int(np.prod(self.ours[: self.inputs])))

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return array if self.inputs == 0 else array.T.reshape(self.ours)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        return array if self.inputs == 0 else array.reshape(self.theirs[::-1]).T


_LAYER = {
    "attn_norm": ("input_layernorm", 0),
    "wq": ("self_attn.q_proj", 1),
    "wk": ("self_attn.k_proj", 1),
    "wv": ("self_attn.v_proj", 1),
    "wo": ("self_attn.o_proj", 2),
    "mlp_norm": ("post_attention_layernorm", 0),
    "w_gate": ("mlp.gate_proj", 1),
    "w_up": ("mlp.up_proj", 1),
    "w_down": ("mlp.down_proj", 1),
}
_REST = {"embed": ("model.embed_tokens", 0), "final_norm": ("model.norm", 0), "head": ("lm_head", 1)}


def tensors(config: LlamaConfig) -> Iterator[Tensor]:
    """Every tensor that a file of this model must hold, layer by layer; a tied head has none."""
    weights: dict[str, Any] = declare(config)
    yield _rest("embed", weights["embed"])
    for layer in range(config.num_layers):
        for key, (name, inputs) in _LAYER.items():
            shape = weights["layers"][key].shape[1:]
            yield Tensor(f"model.layers.{layer}.{name}.weight", ("layers", key), layer, shape, inputs)
    yield _rest("final_norm", weights["final_norm"])
    if "head" in weights:
        yield _rest("head", weights["head"])


def _rest(key: str, weight: Weight) -> Tensor:
    name, inputs = _REST[key]
    return Tensor(f"{name}.weight", (key,), None, weight.shape, inputs)


def to_hf_arrays(config: LlamaConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters under Hugging Face's names and shapes, one host array at a time."""
    for tensor in tensors(config):
        array = params
        for key in tensor.path:
            array = array[key]
        yield tensor.name, np.ascontiguousarray(tensor.to_theirs(np.asarray(array if tensor.layer is None else array[tensor.layer])))
