"""A run's state as it is stored: nested dicts of arrays, whatever classes it is made of in memory.

Names on disk are those of fields and keys ("opt_state.1.0.mu.embed"), so a file can be read without the classes. Random keys become their raw data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _nest(tree: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, last = [_entry_name(entry) for entry in path] or ["value"]
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = convert(leaf)
    return nested


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"a pytree with the path entry {entry!r} cannot be saved")


def to_stored(state: Any) -> dict[str, Any]:
    """A pytree of arrays, random keys and plain numbers as nested dicts of arrays."""
    return _nest(state, lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf if isinstance(leaf, jax.Array) else np.asarray(leaf))


def to_stored_abstract(abstract_state: Any) -> dict[str, Any]:
    """What is to be read for `from_stored`: shapes with shardings; host arrays and numbers stay on the host."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            return np.asarray(leaf)
        stored = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        sharding = leaf.sharding
        if _is_key(leaf) and isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0]))

    return _nest(abstract_state, convert)


def from_stored(stored: dict[str, Any], abstract_state: Any) -> Any:
    """The inverse of `to_stored`, in the classes of `abstract_state`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_state)
    restored = []
    for path, wanted in leaves:
        value: Any = stored
        for name in [_entry_name(entry) for entry in path] or ["value"]:
            value = value[name]
        if _is_key(wanted):
            value = _wrap_key(value, wanted.dtype)
        elif isinstance(wanted, (bool, int, float, np.generic)):
            value = type(wanted)(np.asarray(value)[()])
        restored.append(value)
    return jax.tree_util.tree_unflatten(structure, restored)


def _wrap_key(data: jax.Array, dtype: Any) -> jax.Array:
    for implementation in (None, "threefry2x32", "rbg", "unsafe_rbg"):
        try:
            key = jax.random.wrap_key_data(data, impl=implementation)
        except TypeError:  # the data are of another implementation's size
            continue
        if key.dtype == dtype:
            return key
    raise TypeError(f"no random number generator of jax makes keys of type {dtype}")


def shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Dotted name -> (shape, dtype) of a stored tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))[0]
    return {".".join(_entry_name(entry) for entry in path): (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for path, leaf in leaves}


def shape_differences(saved: dict[str, tuple[tuple[int, ...], str]], wanted_tree: dict[str, Any]) -> list[str]:
    """What differs between `shapes(saved)` and a wanted tree, one phrase each."""
    wanted = shapes(wanted_tree)
    found = []
    for name in sorted({*saved, *wanted}, key=lambda name: (len(name), name)):  # parameters before optimizer moments
        if name not in saved:
            found.append(f"{name} is missing there")
        elif name not in wanted:
            found.append(f"{name} is not wanted here")
        elif saved[name] != wanted[name]:
            found.append(f"{name} is {saved[name][1]}{list(saved[name][0])} there and {wanted[name][1]}{list(wanted[name][0])} here")
    return found
