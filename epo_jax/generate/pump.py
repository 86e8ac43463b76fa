"""The pump: the one background task that serves all waiting calls of generate() together.

    gather  let every coroutine that is ready come with its call
    seat    give free cache slots to waiting sessions, first come first served; a session keeps its slot until it is closed
    prefill the tokens that the cache does not hold yet, rows of like length together
    decode  a chunk of steps for every row that is being sampled; rows that end are answered, the rest go on

It lives while there are calls and ends with the last of them, so one engine serves any number of `asyncio.run`s, one after
the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import numpy as np

from epo_jax.generate import cache as kv
from epo_jax.generate.batches import Shapes
from epo_jax.generate.device import Device
from epo_jax.generate.sampling import Sampled
from epo_jax.generate.session import Request, Session


class Pump:
    """requests: those not answered, in order of arrival. seated: slot → its session. counts: what was done since the start."""

    def __init__(self, device: Device, shapes: Shapes, stop_ids: Collection[int]) -> None:
        self.requests: list[Request] = []
        self.seated: dict[int, Session] = {}
        self.free = kv.Slots(shapes.slots)
        self.task: asyncio.Task[None] | None = None
        self.counts = dict.fromkeys(("prompt_tokens", "prefill_tokens", "decode_tokens", "prefill_calls", "decode_calls", "decode_steps"), 0)
        self._device, self._shapes, self._stop_ids = device, shapes, frozenset(stop_ids)
        self._arrivals = 0
        self._wake: asyncio.Event | None = None

    def add(self, request: Request) -> None:
        """Takes a call from the event loop that runs. RuntimeError while another loop uses the pump."""
        self._start(asyncio.get_running_loop())
        self.requests.append(request)
        self.counts["prompt_tokens"] += request.prompt_length
        self._arrivals += 1
        self._wake.set()

    def vacate(self, session: Session) -> None:
        """Frees the session's slot, if it has one."""
        if session.slot is not None:
            self.free.give_back(session.slot)
            del self.seated[session.slot]
        session.slot, session.cached = None, 0
        if self._wake is not None:
            self._wake.set()

    def stop(self) -> None:
        """Ends the task; waiting calls are cancelled."""
        if self.task is not None and not self.task.done() and not self.task.get_loop().is_closed():
            self.task.cancel()
        for request in self.requests:
            if not request.answer.get_loop().is_closed():
                request.answer.cancel()
        self.requests.clear()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.task is not None and not self.task.done():
            if self.task.get_loop() is loop:
                return
            if self.task.get_loop().is_running():
                raise RuntimeError("the engine is in use by another event loop: one loop at a time")
            self._drop_requests()  # that loop was left without ending its tasks
        self._wake = asyncio.Event()
        self.task = loop.create_task(self._run(), name="engine pump")

    async def _run(self) -> None:
        try:
            self._device.settle()
            while self.requests:
                await self._gather()
                self._seat()
                seated = [request for request in self.requests if request.session.slot is not None]
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
        for request in self.requests:
            session = request.session
            if session.slot is None:
                session.slot = self.free.take()
                session.cached = 0
                if session.slot is not None:
                    self.seated[session.slot] = session
            if session.generation != self._device.generation:
                session.generation, session.cached = self._device.generation, 0

    async def _prefill(self, requests: list[Request]) -> None:
        """The next piece of each request's tokens that are not cached, all but the very last one, which decode feeds."""
        for length, group in self._shapes.prefill_groups(requests):
            waiting = [request for request in group if not request.answer.done()]
            if not waiting:
                continue
            batch = self._shapes.prefill_batch(waiting, length)
            await self._device.prefill(batch, self._capacity(batch.reach))
            self.counts["prefill_calls"] += 1
            self.counts["prefill_tokens"] += int(batch.count.sum())
            for place, request in zip(batch.places, batch.requests, strict=True):
                if not request.answer.done():
                    request.session.cached += int(batch.count[place])

    async def _decode(self, requests: list[Request]) -> None:
        """One chunk for all requests whose tokens are cached but for the last."""
        batch = self._shapes.decode_batch(requests)
        sampled, logprobs, steps = await self._device.decode(batch, self._capacity(batch.reach))
        self.counts["decode_calls"] += 1
        self.counts["decode_steps"] += steps
        for place, request in zip(batch.places, batch.requests, strict=True):
            if not request.answer.done():
                count = int((sampled[place] >= 0).sum())
                request.session.cached += count
                self.accept(request, sampled[place, :count], logprobs[place, :count])

    def accept(self, request: Request, sampled: np.ndarray, logprobs: np.ndarray) -> None:
        """Adds sampled tokens to a request and answers it when it has come to its end."""
        if not np.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite numbers: its weights are damaged or training has diverged")
        new, new_logprobs = sampled.tolist(), logprobs.tolist()
        request.tokens += new
        request.logprobs += new_logprobs
        self.counts["decode_tokens"] += len(new)
        stopped = request.tokens[-1] in self._stop_ids
        if stopped or request.sampled == request.limit:
            self.requests.remove(request)
            request.session.tokens = request.tokens
            reason = "stop" if stopped else "length"
            request.answer.set_result(Sampled(request.tokens[request.prompt_length :], request.logprobs, reason))
        if request.on_tokens is not None:  # last, as the listener may close the session
            request.on_tokens(new, new_logprobs)

    def _capacity(self, reach: int) -> int:
        """What the caches must hold while a program writes below `reach`."""
        return self._shapes.capacity(max([reach, *(session.cached for session in self.seated.values())]))

    def _drop_requests(self, error: Exception | None = None) -> None:
        """Ends every waiting call, with the error or as cancelled; their sessions lose their slots and stay usable."""
        requests, self.requests = self.requests, []
        for request in requests:
            self.vacate(request.session)
            if request.answer.done() or request.answer.get_loop().is_closed():
                continue
            if error is None:
                request.answer.cancel()
            else:
                request.answer.set_exception(error)
