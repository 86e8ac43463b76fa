"""LoRA (Hu et al. 2021, arXiv:2106.09685): a frozen weight W learns as W + (alpha / rank) A B, with A and B of a small rank.

Adapters are parameters of their own, declared, placed and saved like the model's; `attach` lays them beside the weights that a layer reads.
(qwix's LoRA looks for the parameters of Flax modules in the products that it intercepts; here a scan slices plain arrays, and the products
have a backward pass of their own, so that it would find none.)

Shapes: r rank; others as in `epo_jax.model.weights`. A weight [L, in..., out...] has A [L, in..., r] and B [L, r, out...].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from epo_jax.errors import UserError
from epo_jax.model import weights
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Params, Weight

INPUTS = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}  # how many dimensions of a layer's weight are read from


@dataclasses.dataclass(frozen=True)
class Lora:
    """What is adapted and how: `targets` are names of a layer's weights; the update is scaled by alpha / rank."""

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = tuple(INPUTS)

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"model.lora.rank is {self.rank!r}: give a positive whole number, or 0 for none.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"model.lora.alpha is {self.alpha}: give a positive number.")
        unknown = sorted(set(self.targets) - set(INPUTS))
        if unknown or not self.targets:
            raise UserError(f"model.lora.targets names {unknown[0] if unknown else 'nothing'}: choose among {', '.join(INPUTS)}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def from_config(settings: ConfigDict) -> Lora | None:
    """The adapters that `config.model.lora` asks for; None where its rank is 0."""
    return Lora(settings.rank, float(settings.alpha), tuple(settings.targets)) if settings.rank else None


def declare(config: LlamaConfig, lora: Lora | None) -> dict[str, Any]:
    """The parameters that learn, as `epo_jax.model.weights.declare` has them: all of the model, or its adapters. B starts at zero."""
    if lora is None:
        return weights.declare(config)
    whole = weights.declare(config)["layers"]
    adapters = {}
    for name in lora.targets:
        shape, axes, split = whole[name].shape, whole[name].axes, 1 + INPUTS[name]
        if lora.rank >= min(math.prod(shape[1:split]), math.prod(shape[split:])):
            raise UserError(f"model.lora.rank is {lora.rank}, and {name} has no more than that itself: give a smaller rank.")
        adapters[f"{name}_a"] = Weight((*shape[:split], lora.rank), (*axes[:split], "rank"), 1 / math.sqrt(math.prod(shape[1:split])))
        adapters[f"{name}_b"] = Weight((shape[0], lora.rank, *shape[split:]), (axes[0], "rank", *axes[split:]), 0.0)
    return {"layers": adapters}


def init_adapters(config: LlamaConfig, lora: Lora, key: jax.Array) -> Params:
    """Adapters that change nothing yet, float32."""
    declared, tree = jax.tree.flatten(declare(config, lora))
    return jax.tree.unflatten(tree, [weight.initialize(jax.random.fold_in(key, index), jnp.float32) for index, weight in enumerate(declared)])


def from_record(record: Mapping[str, Any]) -> Lora | None:
    """The adapters that a checkpoint's record tells of; None for one of a whole model."""
    found = record.get("lora")
    return None if found is None else Lora(found["rank"], found["alpha"], tuple(found["targets"]))


def check_base(record: Mapping[str, Any], base: str) -> None:
    """Raises `UserError` where a checkpoint's adapters belong to weights of another fingerprint than `base`."""
    found = record.get("lora")
    if found is not None and found["base"] != base:
        raise UserError(
            f"the weights of {found['source']} have changed since the run adapted them (their fingerprint was {found['base']}, and is {base} now): "
            "put the former weights back."
        )


def attach(params: Params, adapters: Params, lora: Lora) -> Params:
    """The parameters with the adapters beside them, as `epo_jax.model.llama` reads them: no product of A and B is ever formed."""
    scaled = {name: array * lora.scale if name.endswith("_b") else array for name, array in adapters["layers"].items()}
    return params | {"layers": params["layers"] | scaled}


def merge(params: Params, adapters: Params, lora: Lora) -> Params:
    """Parameters of the plain model that computes the same: W + (alpha / rank) A B."""
    layers = dict(params["layers"])
    for name in lora.targets:
        update = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1, precision="highest"))(adapters["layers"][f"{name}_a"], adapters["layers"][f"{name}_b"])
        layers[name] = (layers[name] + lora.scale * update).astype(layers[name].dtype)
    return params | {"layers": layers}
