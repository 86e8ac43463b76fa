"""The pump: the one background task that serves all waiting calls of generate() together.

    gather  let every coroutine that is ready come with its call
    seat    give cache slots to waiting sessions, first come first served (seats.py says who must go when slots are short)
    share   copy beginnings that another slot holds; a call whose beginning an earlier one is about to read waits for it
    prefill the tokens that the cache does not hold yet, rows of like length together, the oldest call first
    decode  a chunk of steps for every row that is being sampled; rows that end are answered, the rest go on

It lives while there are calls and ends with the last of them, so one engine serves any number of `asyncio.run`s, one after
the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import numpy as np

from epo_jax.errors import NotFinite
from epo_jax.generate.batches import Shapes
from epo_jax.generate.device import Device
from epo_jax.generate.sampling import Sampled
from epo_jax.generate.seats import Seats
from epo_jax.generate.session import Request, Session

SMALLEST_SHARED = 16  # tokens that are worth a copy
PATIENCE = 4  # a waiting call takes the slot of a later one that has not begun when so many calls a slot were answered meanwhile


class Pump:
    """requests: those not answered, in order of arrival. counts: what was done since the start."""

    def __init__(self, device: Device, shapes: Shapes, seats: Seats, stop_ids: Collection[int]) -> None:
        self.requests: list[Request] = []
        self.seats = seats
        self.task: asyncio.Task[None] | None = None
        self.counts = dict.fromkeys(
            ("prompt_tokens", "prefill_tokens", "shared_tokens", "decode_tokens", "prefill_calls", "decode_calls", "decode_steps"), 0
        )
        self._device, self._shapes, self._stop_ids = device, shapes, frozenset(stop_ids)
        self._arrivals = self._answered = 0
        self._generation = device.generation

    def add(self, request: Request) -> None:
        """Takes a call from the event loop that runs. RuntimeError while another loop uses the pump."""
        self._start(asyncio.get_running_loop())
        self.requests.append(request)
        self.counts["prompt_tokens"] += request.prompt_length
        request.answered_before = self._answered
        self._arrivals += 1

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
        self.task = loop.create_task(self._run(), name="engine pump")

    async def _run(self) -> None:
        try:
            self._device.settle()
            while self.requests:
                await self._gather()
                self._seat()
                seated = [request for request in self.requests if request.session.slot is not None]
                decoding = any(request.uncached == 1 for request in seated)
                unread = await self._share([request for request in seated if request.uncached > 1])
                await self._prefill(unread, self._shapes.prefill_tokens if decoding else None)
                ready = [request for request in seated if not request.answer.done() and request.uncached == 1]
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
        """A slot for every request that can have one. There is always one that has: a slot's session is being sampled, or may go."""
        if self._generation != self._device.generation:
            self._generation = self._device.generation
            self.seats.forget()
        calls = {request.session: place for place, request in enumerate(self.requests)}
        for place, request in enumerate(self.requests):
            session = request.session
            if session.slot is None:
                overtaken = self._answered - request.answered_before >= PATIENCE * self._shapes.slots

                def may_go(other: Session, place: int = place, overtaken: bool = overtaken) -> bool:
                    if other not in calls:
                        return True
                    return overtaken and calls[other] > place and self.requests[calls[other]].sampled == 0

                self.seats.seat(session, request.tokens, may_go)
                self.counts["shared_tokens"] += session.cached
            if session.slot is not None and session.slot.known != len(request.tokens) - 1:
                session.slot.expect(request.tokens)

    async def _share(self, requests: list[Request]) -> list[Request]:
        """Copies what other slots hold of these requests' beginnings; returns those that are to be read now."""
        earlier, reading = [], []
        for request in requests:
            slot = request.session.slot
            if slot is None:  # closed or cancelled while another was copied
                continue
            donor, now, soon = self.seats.beginnings(slot, earlier)
            earlier.append(slot)
            if soon > now and soon - slot.held >= SMALLEST_SHARED:
                continue
            if now - slot.held >= SMALLEST_SHARED:
                await self._device.copy(donor.index, slot.index, self._shapes.capacity(now), self._capacity(now))
                if request.answer.done() or request.session.slot is not slot:
                    continue
                self.counts["shared_tokens"] += now - slot.held
                slot.held = now
            if request.uncached > 1:
                reading.append(request)
        return reading

    async def _prefill(self, requests: list[Request], places: int | None) -> None:
        """The next piece of each request's tokens that are not cached. Stops early when more than `places` were computed, so that
        those that wait for their next chunk of decoding do not wait for many prompts."""
        computed = 0
        while requests := [request for request in requests if not request.answer.done()]:
            if places is not None and computed >= places:
                return
            batch = self._shapes.prefill_batch(requests)
            await self._device.prefill(batch, self._capacity(batch.reach))
            computed += batch.tokens.size
            requests = [request for request in requests if request not in batch.requests]
            self.counts["prefill_calls"] += 1
            self.counts["prefill_tokens"] += int(batch.count.sum())
            for place, request in zip(batch.places, batch.requests, strict=True):
                if not request.answer.done():
                    request.session.slot.held += int(batch.count[place])

    async def _decode(self, requests: list[Request]) -> None:
        """One chunk for all requests whose tokens are cached but for the last."""
        batch = self._shapes.decode_batch(requests)
        sampled, logprobs, steps = await self._device.decode(batch, self._capacity(batch.reach))
        self.counts["decode_calls"] += 1
        self.counts["decode_steps"] += steps
        for place, request in zip(batch.places, batch.requests, strict=True):
            if not request.answer.done():
                count = int((sampled[place] >= 0).sum())
                self.accept(request, sampled[place, :count], logprobs[place, :count])

    def accept(self, request: Request, sampled: np.ndarray, logprobs: np.ndarray) -> None:
        """Adds sampled tokens to a request and answers it when it has come to its end."""
        if not np.isfinite(logprobs).all():
            raise NotFinite(
                "the model's logits are not finite numbers: its weights are damaged, or training has diverged. Of a run, remove the newest checkpoints "
                "to go back, and give another one a smaller learn.learning_rate."
            )
        new, new_logprobs = sampled.tolist(), logprobs.tolist()
        request.tokens += new
        request.logprobs += new_logprobs
        slot = request.session.slot
        slot.expect(request.tokens)
        slot.held = slot.known
        self.seats.use(slot)
        self.counts["decode_tokens"] += len(new)
        stopped = request.tokens[-1] in self._stop_ids
        if stopped or request.sampled == request.limit:
            self.requests.remove(request)
            self._answered += 1
            request.session.tokens = request.tokens
            reason = "stop" if stopped else "length"
            request.answer.set_result(Sampled(request.tokens[request.prompt_length :], request.logprobs, reason, self._device.weights_version))
        if request.on_tokens is not None:  # last, as the listener may close the session
            request.on_tokens(new, new_logprobs)

    def _capacity(self, reach: int) -> int:
        """What the caches must hold while a program writes below `reach`."""
        return self._shapes.capacity(max(reach, self.seats.longest))

    def _drop_requests(self, error: Exception | None = None) -> None:
        """Ends every waiting call, with the error or as cancelled; their sessions lose their slots and stay usable."""
        requests, self.requests = self.requests, []
        for request in requests:
            self.seats.vacate(request.session)
            if request.answer.done() or request.answer.get_loop().is_closed():
                continue
            if error is None:
                request.answer.cancel()
            else:
                request.answer.set_exception(error)
