"""The model's weights and the caches where they lie, and the one thread that runs programs on them.

Programs run in a worker thread, so environments and actors run meanwhile; one at a time, in the order of their calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from epo_jax.generate import cache as kv, play_weights
from epo_jax.generate.batches import DecodeBatch, PrefillBatch
from epo_jax.generate.programs import programs_for
from epo_jax.mesh import param_shardings
from epo_jax.model.config import LlamaConfig

STOP_PLACES = 8  # stop tokens are padded to a multiple of this, so that another set of them compiles nothing

_prepare = jax.jit(play_weights.prepare, static_argnums=1)
_for_decoding = jax.jit(play_weights.for_decoding, static_argnums=1, static_argnames="one_device")


class Device:
    """Runs the engine's programs.

    generation: of the caches; what was cached in an earlier one is lost (new weights, or a failure). seconds: in device work.
    """

    def __init__(
        self,
        config: LlamaConfig,
        params: Any,
        *,
        slots: int,
        stop_ids: Collection[int],
        decode_chunk: int,
        weights: str,
        compute_dtype: jax.typing.DTypeLike,
        cache_dtype: jax.typing.DTypeLike,
        mesh: Mesh | None,
    ) -> None:
        self.programs = programs_for(config, compute_dtype=jnp.dtype(compute_dtype), mesh=mesh, slots=slots)
        self.caches: kv.Caches | None = None
        self.generation = 0
        self.seconds = 0.0
        self._traces_before = self.programs.traces
        self._config, self._mesh, self._decode_chunk, self._weights = config, mesh, decode_chunk, weights
        self._stop_array = np.full(-(-max(1, len(stop_ids)) // STOP_PLACES) * STOP_PLACES, -1, np.int32)
        self._stop_array[: len(stop_ids)] = sorted(stop_ids)
        self._home = jax.sharding.SingleDeviceSharding(_device_of(params)) if mesh is None else None
        self._cache_shape = dict(
            layers=config.num_layers, slots=slots, kv_heads=config.num_kv_heads, head_dim=config.head_dim, dtype=cache_dtype,
            sharding=self._home or kv.cache_sharding(mesh, slots=slots, kv_heads=config.num_kv_heads),
        )  # fmt: skip
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._at_work: concurrent.futures.Future[Any] | None = None

    @property
    def compilations(self) -> int:
        """Traces of any program since this device was made."""
        return self.programs.traces - self._traces_before

    def set_weights(self, params: Any, version: str) -> None:
        """Runs with these from now on; what is cached is lost."""
        self.settle()
        params = jax.device_put(params, self._home if self._mesh is None else param_shardings(self._config, self._mesh))
        self._params = params if self._weights == "compute" else _prepare(params, self._weights)
        self._layers, self._rest = _for_decoding(self._params, self._weights, one_device=self._mesh is None)
        self.weights_version = version
        self.generation += 1

    async def prefill(self, batch: PrefillBatch, capacity: int) -> None:
        """Puts the batch's tokens into caches of this capacity."""
        await self._run(
            lambda caches: (
                self.programs.prefill(self._params, caches, batch.rows, batch.tokens, batch.start, batch.count, attended=batch.attended),
            ),
            capacity,
        )

    async def decode(self, batch: DecodeBatch, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Samples up to decode_chunk tokens a row: int32[R,steps] (-1: none), log-probabilities float32[R,steps], steps that ran."""
        sampled, logprobs, steps = await self._run(
            lambda caches: self.programs.decode(
                self._layers, self._rest, caches, batch.rows, batch.tokens, batch.positions, batch.remaining, batch.settings, self._stop_array,
                attended=kv.capacity_of(caches) if batch.rows is None else batch.attended, steps=self._decode_chunk,
            ),
            capacity,
        )  # fmt: skip
        return sampled, logprobs, int(steps)

    async def copy(self, source: int, target: int, attended: int, capacity: int) -> None:
        """Puts the first `attended` entries of one slot into another."""
        await self._run(lambda caches: (self.programs.copy(caches, np.int32(source), np.int32(target), attended=attended),), capacity)

    def settle(self) -> None:
        """Waits for work that a cancelled caller left behind."""
        if self._at_work is not None:
            concurrent.futures.wait([self._at_work])

    def release(self) -> None:
        """Lets go of caches and weights; `set_weights` brings them back."""
        self.settle()
        self.caches = self._params = self._layers = self._rest = None
        self.generation += 1

    def shutdown(self) -> None:
        """Ends the thread and lets go of caches and weights."""
        self._worker.shutdown(wait=True)
        self.caches = self._params = self._layers = self._rest = None

    async def _run(self, program: Callable[[kv.Caches], tuple[Any, ...]], capacity: int) -> list[np.ndarray]:
        """Runs a program in the worker thread; the caches it returns last are kept, the rest comes back as numpy arrays."""
        self._at_work = self._worker.submit(self._work, program, capacity)
        return await asyncio.wrap_future(self._at_work)

    def _work(self, program: Callable[[kv.Caches], tuple[Any, ...]], capacity: int) -> list[np.ndarray]:
        begin = time.perf_counter()
        try:
            caches, self.caches = self.caches, None  # donated; after a failure there is none
            if caches is None:
                caches = kv.allocate(capacity=capacity, **self._cache_shape)
            elif not capacity <= kv.capacity_of(caches) < 2 * capacity:
                caches = kv.resize(caches, capacity, self._cache_shape["sharding"])
            *results, caches = program(caches)
            results = jax.device_get(results)
            self.caches = caches
            return results
        finally:
            if self.caches is None:
                self.generation += 1
            self.seconds += time.perf_counter() - begin


def _device_of(params: Any) -> jax.Device:
    """The one device the parameters lie on, or the first where they lie on several or are numpy arrays."""
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else set()
    return next(iter(devices)) if len(devices) == 1 else jax.local_devices()[0]
