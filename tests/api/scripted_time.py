"""Clocks of which tests are the masters."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from epo_jax.api.clock import Clock


class JumpingTime:
    """Sleeping costs no time: `now` jumps ahead at once. `slept` keeps what was asked for. Chance always gives `chance`.

    A timeout never comes by itself, however slow the machine is, but where `time_out` says so for the task of that name.
    """

    def __init__(self, chance: float = 0.5, wall: float = 1_700_000_000.0) -> None:
        self.seconds, self.slept, self._chance, self._wall = 0.0, list[float](), chance, wall
        self._timeouts: dict[str, tuple[asyncio.Timeout, float, asyncio.AbstractEventLoop]] = {}

    @property
    def clock(self) -> Clock:
        return Clock(
            now=lambda: self.seconds, wall=lambda: self._wall + self.seconds, sleep=self._sleep, timeout=self._timeout, random=lambda: self._chance
        )

    def time_out(self, task: str) -> None:
        """The time of the task of that name is over; may be called from any thread."""
        timeout, seconds, loop = self._timeouts[task]

        def now() -> None:
            self.seconds += seconds
            timeout.reschedule(loop.time())

        loop.call_soon_threadsafe(now)

    def _timeout(self, seconds: float) -> asyncio.Timeout:
        timeout = asyncio.timeout(None)
        self._timeouts[asyncio.current_task().get_name()] = (timeout, seconds, asyncio.get_running_loop())
        return timeout

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)


class SteppedTime:
    """Sleepers wake, in order, when the test lets time pass with `advance`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, wall=lambda: self.seconds, sleep=self._sleep, random=lambda: 0.5)

    async def advance(self, seconds: float) -> None:
        end = self.seconds + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self.seconds, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            await settle()
        self.seconds = end

    async def _sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.seconds + seconds, next(self._number), future))
        await future


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(50):
        await asyncio.sleep(0)
