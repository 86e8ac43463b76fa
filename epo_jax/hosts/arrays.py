"""Arrays between the hosts and the global mesh, and each process's own copy of the weights.

Learning is over the global mesh. Playing is each process's own business: its engine has the devices that the process owns, which are a mesh with
the same axes, and a copy of the weights there, sharded by the same rules. The copy is made from device to device; no device ever holds more
than its part of it.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from epo_jax.errors import UserError
from epo_jax.hosts import exchange

HOSTS = "hosts"


def put(tree: Any, sharding: Sharding | None) -> Any:
    """A tree of numpy arrays that every process has alike onto their sharding (None: the default device); each puts what its devices hold."""
    if exchange.count() == 1 or sharding is None:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array, array.shape), tree)


def on_host(array: Any) -> np.ndarray:
    """A whole array at every process; all of them ask for it."""
    if exchange.count() == 1 or not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def own_mesh(mesh: Mesh) -> Mesh:
    """The part of a global mesh that this process owns, with the same axes. Raises `UserError` where its devices are no block of the mesh."""
    if exchange.count() == 1:
        return mesh
    return Mesh(_blocks(mesh)[exchange.index()], mesh.axis_names, axis_types=mesh.axis_types)


def own_copy(params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Parameters on the global mesh, copied to `shardings`, which lie on this process's `own_mesh`; all processes make their copies at once."""
    if exchange.count() == 1:
        return params
    blocks = _blocks(mesh)
    everyone = Mesh(np.stack(blocks), (HOSTS, *mesh.axis_names), axis_types=(mesh.axis_types[0], *mesh.axis_types))
    copied = jax.device_put(params, jax.tree.map(lambda sharding: NamedSharding(everyone, sharding.spec), shardings))
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_single_device_arrays(array.shape, sharding, [shard.data for shard in array.addressable_shards]),
        copied,
        shardings,
    )


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _blocks(mesh: Mesh) -> list[np.ndarray]:
    """Each process's devices as it meets them along the axes of the mesh."""
    owners = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    blocks = []
    for process in range(exchange.count()):
        places = [np.unique(along) for along in np.nonzero(owners == process)]
        block = np.ix_(*places)
        if not all(len(along) for along in places) or not np.all(owners[block] == process):
            raise UserError(
                f"the mesh ({_words(mesh)}) gives process {process} no block of devices of its own: choose sizes such that each process's "
                f"{jax.local_device_count()} devices are together, as with every axis but fsdp at 1."
            )
        blocks.append(mesh.devices[block])
    if len({block.shape for block in blocks}) > 1:
        raise UserError(f"the mesh ({_words(mesh)}) gives the processes blocks of different shapes: all need as many devices.")
    return blocks


def _words(mesh: Mesh) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
