"""The in-process engine: many conversations sampled at once, each with its key/value cache kept from turn to turn.

An episode opens a *session* and calls `await engine.generate(session, new_tokens, sampling)` once a turn. All waiting
calls are served together by one background task, the *pump*:

    gather  let every coroutine that is ready come with its call
    seat    give free cache slots to waiting sessions, first come first served; a session keeps its slot until it is closed
    prefill the tokens that the cache does not hold yet, rows of like length together
    decode  a chunk of steps for every row that is being sampled; rows that end are answered, the rest go on

Device work runs in one worker thread, so environments and actors run meanwhile. The pump lives while there are calls
and ends with the last of them, so one engine serves any number of `asyncio.run`s, one after the other.
The engine knows nothing of text: tokens in, tokens out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from epo_jax.errors import UserError
from epo_jax.generate import cache as kv
from epo_jax.generate.programs import Settings, programs_for
from epo_jax.generate.sampling import Sampled, Sampling, key_words
from epo_jax.mesh import check_divides, param_shardings
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig

__all__ = ["ContextFull", "Engine", "Sampled", "Sampling", "Session"]

SMALLEST_LENGTH = 32  # the smallest bucket of new tokens
SMALLEST_CAPACITY = 256  # the smallest bucket of cache entries
STOP_PLACES = 8  # stop tokens are padded to a multiple of this, so that another set of them compiles nothing
PREFILL_TOKENS = {"cpu": 1024}  # places of one prefill batch, beyond which it only outgrows the processor's caches

_unstack = jax.jit(llama.unstack)

Listener = Callable[[list[int], list[float]], None]  # told of newly sampled tokens and their log-probabilities


class ContextFull(UserError):
    """The conversation with its new tokens leaves no room for one sampled token; the session is as it was before the call."""


@dataclasses.dataclass(eq=False)
class Session:
    """One conversation: all its tokens so far, and where the engine keeps their keys and values.

    tokens: everything appended and sampled; the truth, from which a lost cache is made again.
    key: uint32[2]; the token at position p is sampled with fold_in(key, p).
    slot, cached, epoch: the engine's: the cache slot, how many tokens it holds, and of which generation of caches.
    """

    key: np.ndarray
    tokens: list[int] = dataclasses.field(default_factory=list)
    slot: int | None = None
    cached: int = 0
    epoch: int = -1
    closed: bool = False


@dataclasses.dataclass(eq=False)
class _Request:
    """One call of generate() until it is answered. The session's own token list changes only when it is."""

    session: Session
    sampling: Sampling
    tokens: list[int]  # the session's, the new ones, and what has been sampled so far
    prompt_length: int
    limit: int  # at most so many sampled tokens
    answer: asyncio.Future[Sampled]
    on_tokens: Listener | None = None
    logprobs: list[float] = dataclasses.field(default_factory=list)

    @property
    def sampled(self) -> int:
        return len(self.logprobs)

    @property
    def uncached(self) -> int:
        """Tokens the cache does not hold; never none, as the newest is fed only to sample the next."""
        return len(self.tokens) - self.session.cached


class Engine:
    """Samples from one model for many sessions at once.

    stats counts since the start: compilations (traces of either program by this engine), prompt_tokens (tokens before each sampled
    strategy, as a sampler without a cache would read them), prefill_tokens (those really read), decode_tokens
    (sampled), prefill_calls, decode_calls, decode_steps, seconds (in device work).
    """

    def __init__(
        self,
        config: LlamaConfig,
        params: Any,
        *,
        stop_ids: Collection[int],
        pad_id: int,
        slots: int = 32,
        max_length: int = 1024,
        decode_chunk: int = 16,
        prefill_chunk: int = 256,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        cache_dtype: jax.typing.DTypeLike | None = None,
        mesh: Mesh | None = None,
        weights_version: str = "0",
    ) -> None:
        """
        config, params: the model. The arrays of `params` are used where they are, not copied: whoever donates them to
            another program (the learner) must call `update_weights` before the next generate().
        stop_ids: tokens that end a strategy. pad_id: fills unused places of a batch, never read.
        slots: sessions that can hold a cache at once; more may be open, and wait.
        max_length: C, the most tokens a session can have. decode_chunk: steps between two looks at the host.
        prefill_chunk: a longer prompt is read in pieces of this length, between decode chunks of other sessions.
        cache_dtype: of the cache, compute_dtype where not given.
        mesh: with one, params must divide over it; slots lie over data and fsdp, key/value heads over tensor.
        """
        if slots < 1 or max_length < 2 or decode_chunk < 1 or prefill_chunk < 1:
            raise UserError(f"slots={slots}, max_length={max_length}, decode_chunk={decode_chunk}, prefill_chunk={prefill_chunk}: each must be positive, max_length at least 2")
        if max_length > config.max_positions:
            raise UserError(f"max_length is {max_length} but the model knows positions only up to {config.max_positions}: give at most {config.max_positions}")
        if mesh is not None:
            check_divides(config, mesh)
        self.config = config
        self.slots = slots
        self.max_length = max_length
        self._pad_id = pad_id
        self._stop_ids = frozenset(int(token) for token in stop_ids)
        self._decode_chunk = decode_chunk
        self._prefill_chunk = min(prefill_chunk, max_length)
        self._mesh = mesh
        self._stop_array = np.full(-(-max(1, len(self._stop_ids)) // STOP_PLACES) * STOP_PLACES, -1, np.int32)
        self._stop_array[: len(self._stop_ids)] = sorted(self._stop_ids)
        self._programs = programs_for(config, compute_dtype=jnp.dtype(compute_dtype), mesh=mesh, slots=slots)
        self._traces_before = self._programs.traces
        self._prefill_tokens = PREFILL_TOKENS.get(jax.default_backend(), 8192)
        self._length_sizes = kv.doubling(SMALLEST_LENGTH, self._prefill_chunk)
        self._capacity_sizes = kv.doubling(SMALLEST_CAPACITY, max_length)
        # Rows that lie on other devices are not worth gathering: there, every program runs over all slots.
        self._row_sizes = (slots,) if kv.row_parts(mesh) > 1 else tuple(sorted({slots, -(-slots // 4)}))
        self._home = jax.sharding.SingleDeviceSharding(_device_of(params)) if mesh is None else None
        self._cache_shape = dict(
            layers=config.num_layers, slots=slots, kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            dtype=compute_dtype if cache_dtype is None else cache_dtype,
            sharding=self._home or kv.cache_sharding(mesh, slots=slots, kv_heads=config.num_kv_heads),
        )  # fmt: skip
        self._caches: kv.Caches | None = None
        self._epoch = 0  # generation of the caches: what a session cached in an earlier one is lost
        self._free = kv.Slots(slots)
        self._seated: dict[int, Session] = {}  # slot → its session
        self._requests: list[_Request] = []  # in order of arrival
        self._arrivals = 0
        self._pump: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._at_work: concurrent.futures.Future[Any] | None = None
        self._shut = False
        self._stats = dict.fromkeys(("prompt_tokens", "prefill_tokens", "decode_tokens", "prefill_calls", "decode_calls", "decode_steps"), 0)
        self._seconds = 0.0
        self.update_weights(params, weights_version)

    # What callers use.

    @property
    def stats(self) -> dict[str, float]:
        """The counters named in the class, as they are now."""
        return {"compilations": self._programs.traces - self._traces_before, **self._stats, "seconds": self._seconds}

    def update_weights(self, params: Any, version: str) -> None:
        """Samples from these weights from now on, without compiling anew. All caches are lost: an open session reads its
        tokens again on its next use. RuntimeError while calls of generate() are being answered."""
        self._check_open()
        if any(not request.answer.done() for request in self._requests):
            raise RuntimeError("update_weights while sessions are being sampled: wait for their generate() calls first")
        self._settle()
        self._params = jax.device_put(params, self._home if self._mesh is None else param_shardings(self.config, self._mesh))
        self._layers, self._rest = _unstack(self._params)
        self.weights_version = version
        self._epoch += 1

    @property
    def busy_slots(self) -> int:
        """How many sessions hold a cache slot now."""
        return len(self._seated)

    def open(self, seed_key: int | jax.Array | np.ndarray) -> Session:
        """A new, empty session. Its samples depend on this seed (or key), its tokens and the weights alone."""
        self._check_open()
        return Session(key=key_words(seed_key))

    def rewind(self, session: Session, length: int) -> None:
        """Forgets all tokens of a session but the first `length`, as if they had not been; the cache of these stays. Not during generate()."""
        if not 0 <= length <= len(session.tokens) or any(request.session is session for request in self._requests):
            raise UserError(f"a session of {len(session.tokens)} tokens cannot go back to {length}: wait for its generate(), and give fewer")
        session.tokens = session.tokens[:length]
        session.cached = min(session.cached, length)

    def close(self, session: Session) -> None:
        """Ends a session and frees its slot; a second time does nothing. A call it still has is cancelled."""
        session.closed = True
        self._vacate(session)
        for request in [request for request in self._requests if request.session is session]:
            self._requests.remove(request)
            request.answer.cancel()

    async def generate(
        self, session: Session, new_tokens: Sequence[int], sampling: Sampling = Sampling(), on_tokens: Listener | None = None
    ) -> Sampled:
        """Appends new_tokens to the session and samples what follows, at most until the session has max_length tokens.

        on_tokens hears of the sampled tokens as they come, once a decode chunk, in the event loop; together they are the
        answer's. It must be quick, as everyone waits for it, and an error in it ends every waiting call. It may close the
        session, which cancels this call.

        Waits while all slots are taken. Raises ContextFull when the tokens do not fit, UserError for a bad call; when it
        raises, or is cancelled, the session's tokens are as they were (a cancelled session also gives its slot back).
        """
        self._check_call(session, new_tokens)
        loop = asyncio.get_running_loop()
        tokens = [*session.tokens, *map(int, new_tokens)]
        room = self.max_length - len(tokens)
        if room < 1:
            raise ContextFull(
                f"the conversation has {len(tokens)} tokens with this turn and the engine holds {self.max_length}: "
                "end the episode here, or give the engine a larger max_length"
            )
        request = _Request(session, sampling, tokens, len(tokens), min(sampling.max_new_tokens, room), loop.create_future(), on_tokens)
        self._stats["prompt_tokens"] += len(tokens)
        self._start_pump(loop)
        self._requests.append(request)
        self._arrivals += 1
        self._wake.set()
        before = session.tokens
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request in self._requests:
                self._requests.remove(request)
            session.tokens = before  # it may have been answered already, with nobody left to hear it
            self._vacate(session)
            raise

    def generate_batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Sampled]:
        """Samples one continuation of each prompt, each in a session of its own with the seed of the same index. Not for use inside a running event loop."""

        async def one(prompt: Sequence[int], seed: int) -> Sampled:
            session = self.open(seed)
            try:
                return await self.generate(session, prompt, sampling)
            finally:
                self.close(session)

        async def everything() -> list[Sampled]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt, seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
            return [task.result() for task in tasks]

        try:
            return asyncio.run(everything())
        except* Exception as errors:
            raise errors.exceptions[0] from None

    def shutdown(self) -> None:
        """Ends the pump and the worker thread and lets go of caches and weights; waiting calls are cancelled."""
        if self._shut:
            return
        self._shut = True
        if self._pump is not None and not self._pump.done() and not self._pump.get_loop().is_closed():
            self._pump.cancel()
        for request in self._requests:
            if not request.answer.get_loop().is_closed():
                request.answer.cancel()
        self._requests.clear()
        self._worker.shutdown(wait=True)
        self._caches = self._params = self._layers = self._rest = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # The pump.

    def _start_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pump is not None and not self._pump.done():
            if self._pump.get_loop() is loop:
                return
            if self._pump.get_loop().is_running():
                raise RuntimeError("the engine is in use by another event loop: one loop at a time")
            self._drop_requests()  # that loop was left without ending its tasks
        self._wake = asyncio.Event()
        self._pump = loop.create_task(self._run(), name="engine pump")

    async def _run(self) -> None:
        try:
            self._settle()
            while self._requests:
                await self._gather()
                self._seat()
                seated = [request for request in self._requests if request.session.slot is not None]
                if not seated:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                unread = [request for request in seated if request.uncached > 1]
                if unread:
                    await self._prefill(unread)
                ready = [request for request in seated if request.uncached == 1 and not request.answer.done()]
                if ready:
                    await self._decode(ready)
        except asyncio.CancelledError:
            self._drop_requests()
            raise
        except Exception as error:  # whatever went wrong, every caller that waits must hear it
            self._drop_requests(error)

    async def _gather(self) -> None:
        """Lets coroutines that are ready run until no more of them comes with a call."""
        quiet = 0
        while quiet < 3:
            before = self._arrivals
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._arrivals == before else 0

    def _seat(self) -> None:
        for request in self._requests:
            session = request.session
            if session.slot is None:
                session.slot = self._free.take()
                session.cached = 0
                if session.slot is not None:
                    self._seated[session.slot] = session
            if session.epoch != self._epoch:
                session.epoch, session.cached = self._epoch, 0

    async def _prefill(self, requests: list[_Request]) -> None:
        """The next piece of each request's tokens that are not cached, all but the very last one, which decode feeds."""
        groups: dict[int, list[_Request]] = {}
        for request in requests:
            piece = min(request.uncached - 1, self._prefill_chunk)
            groups.setdefault(kv.bucket(piece, self._length_sizes), []).append(request)
        for length, group in sorted(groups.items()):
            sizes = self._prefill_row_sizes(length)
            for batch in _split(group, sizes):
                await self._prefill_batch([request for request in batch if not request.answer.done()], length, sizes)

    def _prefill_row_sizes(self, length: int) -> tuple[int, ...]:
        """The row buckets of one length: at most _prefill_tokens places, or a quarter of that."""
        if len(self._row_sizes) == 1:
            return self._row_sizes
        full = max(1, min(self.slots, self._prefill_tokens // length))
        return tuple(sorted({-(-full // 4), full}))

    async def _prefill_batch(self, requests: list[_Request], length: int, sizes: Sequence[int]) -> None:
        if not requests:
            return
        rows, places, number = self._place(requests, sizes)
        tokens = np.full((number, length), self._pad_id, np.int32)
        start, count = np.zeros(number, np.int32), np.zeros(number, np.int32)
        for place, request in zip(places, requests, strict=True):
            piece = request.tokens[request.session.cached : -1][:length]
            tokens[place, : len(piece)] = piece
            start[place], count[place] = request.session.cached, len(piece)
        attended = kv.bucket(int(start.max()), self._capacity_sizes)
        await self._on_device(
            lambda caches: (self._programs.prefill(self._params, caches, rows, tokens, start, count, attended=attended),),
            reach=int((start + count).max()),
        )
        self._stats["prefill_calls"] += 1
        self._stats["prefill_tokens"] += int(count.sum())
        for place, request in zip(places, requests, strict=True):
            if not request.answer.done():
                request.session.cached += int(count[place])

    async def _decode(self, requests: list[_Request]) -> None:
        """One chunk for all requests whose tokens are cached but for the last."""
        rows, places, number = self._place(requests, self._row_sizes)
        tokens, remaining = np.full(number, self._pad_id, np.int32), np.zeros(number, np.int32)
        positions = np.full(number, -1, np.int32)
        reach = 0
        for place, request in zip(places, requests, strict=True):
            tokens[place], positions[place] = request.tokens[-1], request.session.cached
            remaining[place] = request.limit - request.sampled
            reach = max(reach, request.session.cached + min(int(remaining[place]), self._decode_chunk))
        settings = _settings(requests, places, number)
        attended = kv.bucket(reach, self._capacity_sizes)
        sampled, logprobs, steps = await self._on_device(
            lambda caches: self._programs.decode(
                self._layers, self._rest, caches, rows, tokens, positions, remaining, settings, self._stop_array,
                attended=caches[0][0].shape[2] if rows is None else attended, steps=self._decode_chunk,
            ),
            reach=reach,
        )  # fmt: skip
        self._stats["decode_calls"] += 1
        self._stats["decode_steps"] += int(steps)
        for place, request in zip(places, requests, strict=True):
            if not request.answer.done():
                count = int((sampled[place] >= 0).sum())
                request.session.cached += count
                self._accept(request, sampled[place, :count], logprobs[place, :count])

    def _accept(self, request: _Request, sampled: np.ndarray, logprobs: np.ndarray) -> None:
        """Adds sampled tokens to a request and answers it when it has come to its end."""
        if not np.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite numbers: its weights are damaged or training has diverged")
        new, new_logprobs = sampled.tolist(), logprobs.tolist()
        request.tokens += new
        request.logprobs += new_logprobs
        self._stats["decode_tokens"] += len(new)
        stopped = request.tokens[-1] in self._stop_ids
        if stopped or request.sampled == request.limit:
            self._requests.remove(request)
            request.session.tokens = request.tokens
            reason = "stop" if stopped else "length"
            request.answer.set_result(Sampled(request.tokens[request.prompt_length :], request.logprobs, reason))
        if request.on_tokens is not None:  # last, as the listener may close the session
            request.on_tokens(new, new_logprobs)

    def _place(self, requests: list[_Request], sizes: Sequence[int]) -> tuple[np.ndarray | None, list[int], int]:
        """(rows: the slot of each row of the batch, or None when row r is slot r; each request's row; number of rows)."""
        slots = [request.session.slot for request in requests]
        number = kv.bucket(len(slots), sizes)
        if number == self.slots:
            return None, slots, number
        rows = np.full(number, self.slots, np.int32)  # padding: outside the slots, never written
        rows[: len(slots)] = slots
        return rows, list(range(len(slots))), number

    async def _on_device(self, program: Callable[[kv.Caches], tuple[Any, ...]], *, reach: int) -> list[np.ndarray]:
        """Runs a program that writes below `reach` in the worker thread; the caches it returns last are kept, the rest comes
        back as numpy arrays."""
        needed = max([reach, *(session.cached for session in self._seated.values())])
        self._at_work = self._worker.submit(self._work, program, kv.bucket(needed, self._capacity_sizes))
        return await asyncio.wrap_future(self._at_work)

    def _work(self, program: Callable[[kv.Caches], tuple[Any, ...]], capacity: int) -> list[np.ndarray]:
        begin = time.perf_counter()
        try:
            caches, self._caches = self._caches, None  # donated; after a failure there is none
            if caches is None:
                caches = kv.allocate(capacity=capacity, **self._cache_shape)
            elif not capacity <= caches[0][0].shape[2] < 2 * capacity:
                caches = kv.resize(caches, capacity, self._cache_shape["sharding"])
            *results, caches = program(caches)
            results = jax.device_get(results)
            self._caches = caches
            return results
        finally:
            if self._caches is None:
                self._epoch += 1
            self._seconds += time.perf_counter() - begin

    # Bookkeeping.

    def _settle(self) -> None:
        """Waits for device work that a cancelled pump left behind."""
        if self._at_work is not None:
            concurrent.futures.wait([self._at_work])

    def _vacate(self, session: Session) -> None:
        if session.slot is not None:
            self._free.give_back(session.slot)
            del self._seated[session.slot]
        session.slot, session.cached = None, 0
        if self._wake is not None:
            self._wake.set()

    def _drop_requests(self, error: Exception | None = None) -> None:
        """Ends every waiting call, with the error or as cancelled; their sessions lose their slots and stay usable."""
        requests, self._requests = self._requests, []
        for request in requests:
            self._vacate(request.session)
            if request.answer.done() or request.answer.get_loop().is_closed():
                continue
            if error is None:
                request.answer.cancel()
            else:
                request.answer.set_exception(error)

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("the engine has been shut down")

    def _check_call(self, session: Session, new_tokens: Sequence[int]) -> None:
        self._check_open()
        if session.closed:
            raise UserError("this session is closed: open a new one")
        if any(request.session is session for request in self._requests):
            raise UserError("this session is already being sampled: await its generate() before the next")
        if not session.tokens and not len(new_tokens):
            raise UserError("the prompt has no tokens: give at least one")
        if len(new_tokens) and not 0 <= min(new_tokens) <= max(new_tokens) < self.config.vocab_size:
            raise UserError(f"a token id lies outside 0..{self.config.vocab_size - 1}: the tokenizer does not belong to this model")


def _settings(requests: list[_Request], places: list[int], number: int) -> Settings:
    settings = Settings(np.zeros((number, 2), np.uint32), np.zeros(number, np.float32), np.zeros(number, np.int32), np.ones(number, np.float32))
    for place, request in zip(places, requests, strict=True):
        settings.keys[place] = request.session.key
        settings.temperature[place] = request.sampling.temperature
        settings.top_k[place] = request.sampling.top_k
        settings.top_p[place] = request.sampling.top_p
    return settings


def _split(requests: list[_Request], sizes: Sequence[int]) -> list[list[_Request]]:
    """Cuts a list into batches that fill the row buckets: 9 rows of buckets (2, 8, 32) are 8 and 1, not 9 of 32."""
    batches = []
    while requests:
        number = len(requests)
        fitting = [size for size in sizes if size <= number]
        if not fitting or (number <= sizes[-1] and kv.bucket(number, sizes) <= math.ceil(number * 4 / 3)):
            return [*batches, requests]
        batches.append(requests[: fitting[-1]])
        requests = requests[fitting[-1] :]
    return batches


def _device_of(params: Any) -> jax.Device:
    """The one device the parameters lie on, or the first where they lie on several or are numpy arrays."""
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else set()
    return next(iter(devices)) if len(devices) == 1 else jax.local_devices()[0]
