"""The programs of a run, compiled ahead of time for devices that are not there, and what each needs.

They are the run's own (`epo_jax.learn.step`, `epo_jax.generate.programs`), lowered from shapes and shardings. What else lies on a chip
while a program runs is added here: the optimizer's moments during a pass, the learner's state while episodes are played.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from epo_jax.batch import TrajectoryBatch
from epo_jax.errors import UserError
from epo_jax.generate import cache as kv, play_weights
from epo_jax.generate.programs import Settings, programs_for
from epo_jax.learn.choices import objective_of
from epo_jax.learn.optimizer import make_optimizer
from epo_jax.learn.step import Sums, abstract_state, accumulated_sharding, dtype_of, make_step
from epo_jax.mesh import make_mesh, shardings_of
from epo_jax.model import lora as adapters
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from tools.planning.chips import Topology
from tools.planning.collectives import collectives

PROGRAMS = ("pass", "update", "decode")
STOP_IDS = 8  # the engine pads the stop tokens to so many

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Compiled:
    """One program. Bytes are those of one chip.

    beside: of arrays that are no arguments of it and lie on the chip while it runs. peak: everything together. seconds: of compiling.
    collectives: kind -> [executions, bytes], see `tools.planning.collectives`. refused: what the compiler said, where it found no room.
    unread: why the collectives are not known: the text of what a newer libtpu compiled may be beyond jaxlib.
    """

    arguments: float = 0
    outputs: float = 0
    aliased: float = 0
    temporaries: float = 0
    beside: float = 0
    peak: float = 0
    seconds: float = 0
    collectives: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    refused: str = ""
    unread: str = ""


def devices_of(topology: Topology, *, simulated: bool) -> Sequence[Any]:
    """Devices to compile for: descriptions of TPUs, or simulated CPU devices in the place of what cannot be described.

    Raises `UserError` where libtpu is missing or does not know the topology, or too few CPU devices were asked for before JAX started.
    """
    if simulated:
        devices = jax.devices("cpu")
        if len(devices) < topology.count:
            raise UserError(f"{topology.count} simulated devices are needed and JAX has started with {len(devices)}: plan in a process of its own.")
        return devices[: topology.count]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no Cloud TPU metadata server to ask
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology.name, platform="tpu").devices
    except Exception as error:  # libtpu raises several kinds, and says only here what it does not know
        raise UserError(f"libtpu does not know the topology {topology.name}: {_first_line(error)}") from error


def meshes_of(chips: Topology, shape: dict[str, int], *, simulated: bool) -> tuple[Mesh, Mesh]:
    """The mesh that a run learns on, and the one that its first process plays on: of its own chips, with the same axes.

    Raises `UserError` where the chips of that process are no block of the mesh.
    """
    mesh = make_mesh(shape, devices_of(chips, simulated=simulated))
    if chips.processes == 1:
        return mesh, mesh
    first = np.vectorize(lambda device: device.id < chips.host.count if simulated else device.process_index == 0, otypes=[bool])(mesh.devices)
    sizes = {axis: len(np.unique(places)) for axis, places in zip(mesh.axis_names, np.nonzero(first), strict=True)}
    if math.prod(sizes.values()) != chips.host.count:
        raise UserError(f"the chips of one machine are no block of the mesh {shape}: choose other sizes.")
    # The machine by itself: what is compiled for it is the same, and the compiler knows its chips as a whole topology.
    return mesh, make_mesh(sizes, devices_of(chips.host, simulated=simulated))


class Planned:
    """Shapes and programs of one run that learns on `mesh`, and plays on `own`."""

    def __init__(self, config: ConfigDict, model: LlamaConfig, mesh: Mesh, own: Mesh, rows: int) -> None:
        self._config, self._model, self._mesh, self._own, self._rows = config, model, mesh, own, rows
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._lora = adapters.from_config(config.model.lora)
        self._optimizer = make_optimizer(config.learn, 1000)
        self._state = abstract_state(model, self._optimizer, mesh, self._lora)
        self._compute = play_weights.compute_dtype(config.rollout.weights, dtype_of(config.model.compute_dtype))

    @property
    def programs(self) -> dict[str, Callable[[], tuple[jax.stages.Lowered, float]]]:
        """Name -> () -> the lowered program, and the bytes a chip beside it."""
        return dict(zip(PROGRAMS, (self._pass, self._update, self._decode), strict=True))

    # --- learning ---------------------------------------------------------------------------------------------------

    def _pass(self) -> tuple[jax.stages.Lowered, float]:
        length = self._config.learn.max_length
        index = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._everywhere)
        lowered = self._step().accumulate.lower(self._state.params, self._frozen(), self._sums(), self._batch(), index, length)
        return lowered, bytes_a_device((self._state.opt_state, self._reference()))

    def _update(self) -> tuple[jax.stages.Lowered, float]:
        return self._step().finish.lower(self._state, self._sums(), self._batch()), bytes_a_device((self._frozen(), self._reference()))

    def _step(self):
        config, learn = self._config, self._config.learn
        return make_step(
            self._model, self._optimizer, self._mesh, compute_dtype=config.model.compute_dtype, remat=config.model.remat, lengths=(learn.max_length,),
            objective=objective_of(learn), lora=self._lora, frozen=self._frozen(),
        )  # fmt: skip

    def _frozen(self) -> Any:
        return None if self._lora is None else self._weights(jnp.float32)

    def _reference(self) -> Any:
        """The frozen weights that the loss compares with (`epo_jax.learn.reference`)."""
        return None if self._config.learn.kl_reference == "behaviour" else self._weights(dtype_of(self._config.model.compute_dtype))

    def _weights(self, dtype: Any, mesh: Mesh | None = None) -> Any:
        declared = declare(self._model)
        shardings = shardings_of(declared, mesh or self._mesh)
        return jax.tree.map(lambda weight, sharding: jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding), declared, shardings)

    def _batch(self) -> TrajectoryBatch:
        shape = (self._config.learn.accumulation, self._rows, self._config.learn.max_length)
        floats = ("loss_weights", "behavior_logprobs")
        return TrajectoryBatch(*(self._of_rows(shape, jnp.float32 if name in floats else jnp.int32) for name in TrajectoryBatch._fields))

    def _sums(self) -> Sums:
        scores = self._of_rows(self._batch().tokens.shape, jnp.float32)
        return Sums(jax.ShapeDtypeStruct((), jnp.float32, sharding=self._everywhere), self._state.params, scores, scores)

    def _of_rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=accumulated_sharding(self._mesh))

    # --- playing ----------------------------------------------------------------------------------------------------

    def _decode(self) -> tuple[jax.stages.Lowered, float]:
        """Decoding in all slots at their full length, while the learner's state and the weights that prefill reads lie beside it."""
        rollout, mesh = self._config.rollout, self._own
        if rollout.weights == "int8":  # the compiler chooses how quantised arrays lie; bfloat16 is above them
            raise UserError("playing in int8 cannot be planned: take --config.rollout.weights=bfloat16, which needs more.")
        everywhere = NamedSharding(mesh, PartitionSpec())
        slots = -(-rollout.slots // kv.row_parts(mesh)) * kv.row_parts(mesh)
        sharding = kv.cache_sharding(mesh, slots=slots, kv_heads=self._model.num_kv_heads)
        shapes = jax.eval_shape(
            lambda: kv.allocate(
                layers=self._model.num_layers, slots=slots, capacity=rollout.max_context, kv_heads=self._model.num_kv_heads,
                head_dim=self._model.head_dim, dtype=self._compute, sharding=None,
            )
        )  # fmt: skip
        caches = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), shapes)
        whole = self._weights(self._compute, mesh)
        layers = [jax.tree.map(_one_layer, whole["layers"]) for _ in range(self._model.num_layers)]
        rest = {name: array for name, array in whole.items() if name != "layers"}

        def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((slots, *shape), dtype, sharding=everywhere)

        settings = Settings(rows(2, dtype=jnp.uint32), rows(dtype=jnp.float32), rows(), rows(dtype=jnp.float32))
        stops = jax.ShapeDtypeStruct((STOP_IDS,), jnp.int32, sharding=everywhere)
        programs = programs_for(self._model, compute_dtype=self._compute, mesh=mesh, slots=slots)
        lowered = programs.decode.lower(
            layers, rest, caches, None, rows(), rows(), rows(), settings, stops, attended=rollout.max_context, steps=rollout.decode_chunk
        )
        learner = bytes_a_device((self._state, self._frozen(), self._reference()))
        # Playing reads the learner's own arrays where they are what it needs, on the same chips.
        shared = self._compute == jnp.float32 and self._lora is None and mesh == self._mesh
        return lowered, learner + (0 if shared else bytes_a_device(whole["layers"]))


def compile_program(lower: Callable[[], tuple[jax.stages.Lowered, float]]) -> Compiled:
    """Compiles and measures; a program that the compiler has no room for is a result, not an error."""
    start = time.monotonic()
    lowered, beside = lower()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error))
        if used is None:
            raise
        needed = float(used[1] or used[3]) * _UNITS[used[2] or used[4] or ""]
        return Compiled(beside=beside, peak=needed + beside, seconds=time.monotonic() - start, refused=_first_line(error))
    memory, sent, unread = program.memory_analysis(), {}, ""
    try:
        sent = {kind: [found.count, found.bytes] for kind, found in collectives(program.as_text()).items()}
    except jax.errors.JaxRuntimeError as error:
        unread = _first_line(error)
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        beside=beside,
        peak=own + memory.generated_code_size_in_bytes + beside,
        seconds=time.monotonic() - start,
        collectives=sent,
        unread=unread,
    )


def bytes_a_device(tree: Any) -> int:
    """Of arrays, or of shapes with shardings: the bytes that one device holds."""
    return sum(math.prod(array.sharding.shard_shape(array.shape)) * jnp.dtype(array.dtype).itemsize for array in jax.tree.leaves(tree))


def _one_layer(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(stacked.sharding.mesh, PartitionSpec(*stacked.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=sharding)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
