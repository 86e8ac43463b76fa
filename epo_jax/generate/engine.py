"""The in-process engine: many conversations sampled at once, each with its key/value cache kept from turn to turn.

An episode opens a *session* and calls `await engine.generate(session, new_tokens, sampling)` once a turn. This file is what
callers use; the parts behind it:

    session.py   the conversation and the call
    pump.py      the background task that serves all calls together: what runs next
    seats.py     which session has which cache slot, and which beginnings are there already
    batches.py   requests → host arrays of a few fixed shapes
    device.py    weights and caches where they lie, and the thread that runs programs on them
    play_weights.py  the weights as playing reads them
    programs.py  the programs; cache.py, sampling.py: what they are made of

The engine knows nothing of text: tokens in, tokens out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from epo_jax.errors import UserError
from epo_jax.generate import play_weights
from epo_jax.generate.batches import Shapes
from epo_jax.generate.device import Device
from epo_jax.generate.pump import Pump
from epo_jax.generate.sampling import Sampled, Sampling, key_words
from epo_jax.generate.seats import Seats
from epo_jax.generate.session import ContextFull, Listener, Request, Session
from epo_jax.mesh import check_divides
from epo_jax.model.config import LlamaConfig

__all__ = ["ContextFull", "Engine", "Sampled", "Sampling", "Session"]


class Engine:
    """Samples from one model for many sessions at once.

    stats counts since the start: compilations (traces of any program by this engine), prompt_tokens (tokens before each sampled
    strategy, as a sampler without a cache would read them), prefill_tokens (those really read), shared_tokens (those that
    another conversation with the same beginning, or an earlier stay in a slot, had left in the caches), decode_tokens (sampled),
    prefill_calls, decode_calls, decode_steps, evictions (slots taken from sessions that were not being sampled), seconds (in device work).
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
        weights: str = "compute",
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        cache_dtype: jax.typing.DTypeLike | None = None,
        mesh: Mesh | None = None,
        weights_version: str = "0",
        exact: bool = False,
    ) -> None:
        """
        config, params: the model. The arrays of `params` are used where they are, not copied: whoever donates them to
            another program (the learner) must call `update_weights` before the next generate().
        stop_ids: tokens that end a strategy. pad_id: fills unused places of a batch, never read.
        slots: sessions that can hold a cache at once. More may be open: those that are not being sampled give their slot up.
        max_length: C, the most tokens a session can have. decode_chunk: steps between two looks at the host.
        prefill_chunk: a longer prompt is read in pieces of this length, between decode chunks of other sessions.
        weights: how the weights are kept for playing, see play_weights.py.
        cache_dtype: of the cache, compute_dtype where not given.
        mesh: with one, params must divide over it; slots lie over data, fsdp and sequence, key/value heads over tensor.
        exact: what a session samples does not depend on its company in a single bit, see batches.Shapes. Else log-probabilities may
            differ in their last bits, and so, rarely, a token may.
        """
        if slots < 1 or max_length < 2 or decode_chunk < 1 or prefill_chunk < 1:
            raise UserError(f"slots={slots}, max_length={max_length}, decode_chunk={decode_chunk}, prefill_chunk={prefill_chunk}: each must be positive, max_length at least 2")
        if max_length > config.max_positions:
            raise UserError(f"max_length is {max_length} but the model knows positions only up to {config.max_positions}: give at most {config.max_positions}")
        if mesh is not None:
            check_divides(config, mesh)
        play_weights.check(weights)
        compute_dtype = play_weights.compute_dtype(weights, compute_dtype)
        self.config = config
        self.slots = slots
        self.max_length = max_length
        stops = frozenset(int(token) for token in stop_ids)
        shapes = Shapes(
            slots=slots, max_length=max_length, prefill_chunk=prefill_chunk, decode_chunk=decode_chunk, pad_id=pad_id, mesh=mesh, exact=exact
        )  # fmt: skip
        self._device = Device(
            config, params, slots=slots, stop_ids=stops, decode_chunk=decode_chunk, weights=weights, compute_dtype=compute_dtype,
            cache_dtype=compute_dtype if cache_dtype is None else cache_dtype, mesh=mesh,
        )  # fmt: skip
        self._seats = Seats(slots, max_length, min(prefill_chunk, max_length))
        self._pump = Pump(self._device, shapes, self._seats, stops)
        self._shut = self._released = False
        self.update_weights(params, weights_version)

    @property
    def stats(self) -> dict[str, float]:
        """The counters named in the class, as they are now."""
        return {"compilations": self._device.compilations, **self._pump.counts, "evictions": self._seats.evictions, "seconds": self._device.seconds}

    def update_weights(self, params: Any, version: str) -> None:
        """Samples from these weights from now on, without compiling anew. All caches are lost: an open session reads its
        tokens again on its next use. RuntimeError while calls of generate() are being answered."""
        self._check_idle("update_weights")
        self._device.set_weights(params, version)
        self._released = False

    def release(self) -> None:
        """Gives the memory of weights and caches back, for learning to use; nothing can be sampled until `update_weights`.
        RuntimeError while calls of generate() are being answered."""
        self._check_idle("release")
        self._device.release()
        self._released = True

    @property
    def weights_version(self) -> str:
        """Of the weights that are sampled from."""
        return self._device.weights_version

    @property
    def busy_slots(self) -> int:
        """How many sessions hold a cache slot now."""
        return self._seats.taken

    def open(self, seed_key: int | jax.Array | np.ndarray) -> Session:
        """A new, empty session. Its samples depend on this seed (or key), its tokens and the weights alone."""
        self._check_open()
        return Session(key=key_words(seed_key))

    def rewind(self, session: Session, length: int) -> None:
        """Forgets all tokens of a session but the first `length`, as if they had not been; the cache of these stays. Not during generate()."""
        if not 0 <= length <= len(session.tokens) or any(request.session is session for request in self._pump.requests):
            raise UserError(f"a session of {len(session.tokens)} tokens cannot go back to {length}: wait for its generate(), and give fewer")
        session.tokens = session.tokens[:length]
        if session.slot is not None:
            session.slot.held = session.slot.known = min(session.slot.held, length)

    def close(self, session: Session) -> None:
        """Ends a session and frees its slot; a second time does nothing. A call it still has is cancelled."""
        session.closed = True
        self._seats.vacate(session)
        for request in [request for request in self._pump.requests if request.session is session]:
            self._pump.requests.remove(request)
            request.answer.cancel()

    async def generate(
        self, session: Session, new_tokens: Sequence[int], sampling: Sampling = Sampling(), on_tokens: Listener | None = None
    ) -> Sampled:
        """Appends new_tokens to the session and samples what follows, at most until the session has max_length tokens.

        on_tokens hears of the sampled tokens as they come, once a decode chunk, in the event loop; together they are the
        answer's. It must be quick, as everyone waits for it, and an error in it ends every waiting call. It may close the
        session, which cancels this call.

        Waits while all slots are busy. Raises ContextFull when the tokens do not fit, UserError for a bad call; when it
        raises, or is cancelled, the session's tokens are as they were (a cancelled session also gives its slot back).
        """
        self._check_call(session, new_tokens)
        tokens = [*session.tokens, *map(int, new_tokens)]
        room = self.max_length - len(tokens)
        if room < 1:
            raise ContextFull(
                f"the conversation has {len(tokens)} tokens with this turn and the engine holds {self.max_length}: "
                "end the episode here, or give the engine a larger max_length"
            )
        limit, answer = min(sampling.max_new_tokens, room), asyncio.get_running_loop().create_future()
        request = Request(session, sampling, tokens, len(tokens), limit, answer, on_tokens)
        self._pump.add(request)
        before = session.tokens
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request in self._pump.requests:
                self._pump.requests.remove(request)
            session.tokens = before  # it may have been answered already, with nobody left to hear it
            self._seats.vacate(session)
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
        self._pump.stop()
        self._device.shutdown()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("the engine has been shut down")

    def _check_idle(self, action: str) -> None:
        self._check_open()
        if any(not request.answer.done() for request in self._pump.requests):
            raise RuntimeError(f"{action} while sessions are being sampled: wait for their generate() calls first")

    def _check_call(self, session: Session, new_tokens: Sequence[int]) -> None:
        self._check_open()
        if self._released:
            raise RuntimeError("the engine has released its weights: update_weights before generate()")
        if session.closed:
            raise UserError("this session is closed: open a new one")
        if any(request.session is session for request in self._pump.requests):
            raise UserError("this session is already being sampled: await its generate() before the next")
        if not session.tokens and not len(new_tokens):
            raise UserError("the prompt has no tokens: give at least one")
        if len(new_tokens) and not 0 <= min(new_tokens) <= max(new_tokens) < self.config.vocab_size:
            raise UserError(f"a token id lies outside 0..{self.config.vocab_size - 1}: the tokenizer does not belong to this model")

