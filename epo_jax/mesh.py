"""Devices in four axes, and the one table that says which dimension of which array is split over which of them.

- `data`: every device group holds all the weights and its own rows of the batch;
- `fsdp`: rows of the batch *and* weights are split; a weight is gathered where it is used;
- `sequence`: the tokens of each row *and* weights are split, for rows whose activations are too much for one device; attention gathers keys
  and values (`epo_jax.model.attention_sequence`). Where episodes are played, it splits slots as `fsdp` does;
- `tensor`: heads, feed-forward units and the vocabulary are split; activations are summed across the axis.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from epo_jax.errors import UserError
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Weight, declare

AXES = ("data", "fsdp", "sequence", "tensor")
TOKENS_WORTH_A_DEVICE = 512  # of a row: `choose_sizes` does not split rows into shorter stretches

# Logical axis -> mesh axis (or axes). The embedding table is split along D only: split along V, the gather of the
# tokens' rows would first re-materialise the whole table on every device.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "layers": None,
    "model": ("fsdp", "sequence"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ff": "tensor",
    "vocab": "tensor",
    "table_rows": None,
    "table_model": ("fsdp", "sequence", "tensor"),
    "norm": None,
    "rank": None,
    "activation": None,
}


def make_mesh(shape: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the `AXES`; an axis that is not named is 1, and one may be -1: all remaining devices.

    Raises `UserError` for unknown axes and for sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = sizes_of(shape, len(devices))
    placed = np.array(devices).reshape(sizes)
    if devices[0].platform == "tpu":  # neighbours in the mesh become neighbours in the machine, as far as the sizes let them (v6e-16, tensor 2: half way)
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes_of(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
    """The size of each axis of a mesh of `count` devices, as `make_mesh` takes `shape`."""
    unknown = sorted(set(shape) - set(AXES))
    if unknown:
        raise UserError(f"the mesh has no axis {unknown[0]!r}: its axes are {', '.join(AXES)}.")
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"the mesh {_words(sizes)} is not possible: sizes are positive, and at most one is -1 (all remaining devices).")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if count % known:
            raise UserError(f"{count} devices cannot be divided by the mesh {_words(sizes)}: choose sizes whose product divides {count}.")
        sizes[sizes.index(-1)] = count // known
    elif known != count:
        raise UserError(f"the mesh {_words(sizes)} needs {known} devices and there are {count}: change a size, or set one to -1 for the rest.")
    return tuple(sizes)


def choose_sizes(
    asked: Mapping[str, int], count: int, *, width: int = 0, rows: Sequence[int] = (), slots: int = 0, length: int = 0, hosts: int = 1
) -> dict[str, int]:
    """The sizes of all axes for `count` devices on `hosts` machines, where `asked` leaves some open (0).

    An axis that is asked for is taken as it is; where one is -1, the open ones are 1; an open `tensor` is 1 always. The others share the devices
    so that, the first rule before the second and so on:

    1. each machine's devices are a block of the mesh, in which it can play alone;
    2. the weights can be split: fsdp × sequence × tensor divides `width`, the model's D (0: not known). What cannot be in it goes to data;
    3. each device keeps `TOKENS_WORTH_A_DEVICE` of a row of `length` tokens, or whole rows;
    4. rows can be split: data × fsdp divides each of `rows` (of a pass), and with sequence also `slots` (played at once). Where it cannot be,
       `check_rows` says what to change;
    5. a row stays on one machine: sequence × tensor divides its devices;
    6. sequence is as small as it can be, then fsdp as large: weights on as many devices as possible, whole rows on each.
    """
    sizes = {axis: int(asked.get(axis, 0)) for axis in AXES}
    unknown = sorted(set(asked) - set(AXES))
    if unknown:
        raise UserError(f"the mesh has no axis {unknown[0]!r}: its axes are {', '.join(AXES)}.")
    taken = math.prod(size for size in sizes.values() if size > 0)
    if min(sizes.values()) < 0 or count % taken:
        return {axis: size or 1 for axis, size in sizes.items()}  # for `sizes_of` to fill, or to refuse
    sizes["tensor"] = sizes["tensor"] or 1
    free = [axis for axis in ("data", "fsdp", "sequence") if not sizes[axis]]
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    splits = [sizes | dict(zip(free, found, strict=True)) for found in itertools.product(divisors, repeat=len(free))]

    def faults(split: dict[str, int]) -> tuple[int, ...]:
        data, fsdp, sequence, tensor = split.values()
        ways = data * fsdp
        return (
            not _blocks(tuple(split.values()), count // hosts),
            width % (fsdp * sequence * tensor) > 0,
            sequence > max(1, length // TOKENS_WORTH_A_DEVICE),
            any(each % ways for each in rows) or (sequence > 1 and slots % (ways * sequence) > 0),
            count // hosts % (sequence * tensor) > 0,
            sequence,
            -fsdp,
        )

    whole = [split for split in splits if math.prod(split.values()) == count]
    return min(whole, key=faults) if whole else {axis: size or 1 for axis, size in sizes.items()}


def _blocks(sizes: Sequence[int], together: int) -> bool:
    """Whether every `together` devices in a row, of those in the order of the mesh, are a block of it: whole last axes, and a part of the one before."""
    for size in reversed(sizes):
        if together % size:
            return size % together == 0
        together //= size
    return together == 1


def spec(*logical: str) -> PartitionSpec:
    """The partition of an array whose dimensions have these logical names; two of them never use one mesh axis."""
    parts = [RULES[name] for name in logical]
    used = [axis for part in parts for axis in ((part,) if isinstance(part, str) else part or ())]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical} collide on a mesh axis: {parts}")
    return PartitionSpec(*parts)


def parts(logical: Sequence[str], mesh: Mapping[str, int]) -> list[int]:
    """Into how many parts each dimension of these logical names is cut; `mesh`: the sizes of its axes."""
    rules = (RULES[name] for name in logical)
    return [math.prod(mesh[axis] for axis in ((rule,) if isinstance(rule, str) else rule or ())) for rule in rules]


def param_shardings(config: LlamaConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of the parameters, with a `NamedSharding` for each array."""
    return shardings_of(declare(config), mesh)


def shardings_of(declared: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A `NamedSharding` for each `Weight` of a tree."""
    return jax.tree.map(lambda weight: NamedSharding(mesh, spec(*weight.axes)), declared)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [B, ...]: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, spec("batch"))


def rows_split_over(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split: a batch has a multiple of so many."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(name: str, rows: int, mesh: Mesh) -> None:
    """Raises `UserError` where the mesh does not divide the rows of a forward pass; `name` is their field in the configuration."""
    ways = rows_split_over(mesh)
    if rows % ways:
        raise UserError(
            f"{name} is {rows}, and the mesh splits rows over {ways} devices (data × fsdp): "
            f"give a multiple of {ways}, as in --config.{name}={ways}."
        )


def constrain(x: jax.Array, mesh: Mesh | None, *logical: str) -> jax.Array:
    """Tells the compiler how an intermediate array lies on the mesh; does nothing without a mesh."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*logical)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(x: jax.Array, mesh: Mesh | None, stored: tuple[str, ...], used: tuple[str, ...]) -> jax.Array:
    """A weight that lies by the logical axes `stored`, as it is used; its gradient goes straight back to where the weight lies.

    `constrain` would hold the gradient to the same axes as the weight in use: each device would sum and keep all of what it needs a part of.
    """
    return constrain(x, mesh, *used)


gather.defvjp(
    lambda x, mesh, stored, used: (constrain(x, mesh, *used), None),
    lambda mesh, stored, used, _, gradient: (constrain(gradient, mesh, *stored),),
)


def describe(mesh: Mesh) -> str:
    """Its devices and axes in words: `8 TPU v4 devices (data 1 × fsdp 8 × sequence 1 × tensor 1)`."""
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''} ({' × '.join(f'{axis} {size}' for axis, size in mesh.shape.items())})"


def describe_weights(declared: dict[str, Any], mesh: Mesh, itemsize: int = 4) -> list[str]:
    """A line for each kind of weight in a tree of `Weight`s: how it is split, and its bytes on one device (`itemsize` bytes a number)."""
    kinds: dict[str, tuple[list[str], float]] = {}
    for path, weight in jax.tree_util.tree_flatten_with_path(declared)[0]:
        ways = parts(weight.axes, mesh.shape)
        split = ", ".join(f"{name} over {_axes_words(name, mesh.shape)}" for name, count in sorted(zip(weight.axes, ways, strict=True)) if count > 1)
        names, size = kinds.get(split, ([], 0.0))
        kinds[split] = [*names, str(path[-1].key)], size + itemsize * math.prod(weight.shape) / math.prod(ways)
    return [f"weights {', '.join(names)}: {split or 'whole on every device'}; {size / 1e6:.1f} MB a device" for split, (names, size) in kinds.items()]


def _axes_words(logical: str, mesh: Mapping[str, int]) -> str:
    rule = RULES[logical]
    return " × ".join(f"{axis} {mesh[axis]}" for axis in ((rule,) if isinstance(rule, str) else rule or ()) if mesh[axis] > 1)


def check_divides(config: LlamaConfig, mesh: Mesh | Mapping[str, int]) -> None:
    """Raises `UserError` with the first dimension of the model that the mesh, or one of these sizes, does not divide."""
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    for path, weight in jax.tree_util.tree_flatten_with_path(declare(config))[0]:
        _check_weight("/".join(str(entry.key) for entry in path), weight, sizes)


def _check_weight(name: str, weight: Weight, mesh: Mapping[str, int]) -> None:
    for size, logical, ways in zip(weight.shape, weight.axes, parts(weight.axes, mesh), strict=True):
        if size % ways:
            raise UserError(
                f"the mesh {_words([mesh[axis] for axis in AXES])} does not divide the model: {name} has {size} {logical}, "
                f"not a multiple of {ways} ({_axes_words(logical, mesh)}); give sizes whose product divides {size}."
            )


def _words(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True)) + ")"
