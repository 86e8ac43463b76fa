"""The circuit breaker: when a server fails again and again, all calls pause instead of burning their retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from epo_jax.api.clock import Clock
from epo_jax.api.failures import ApiFatal

LONGEST_PAUSE_S = 900.0  # also where a server asks for longer


class Breaker:
    """Closed, calls pass. After `failures` failed tries in a row it opens: all wait for `pause_s`, then one try, the probe, passes.

    The probe is the call that has waited longest: a failed one costs its call a retry, and so they share that cost. If it succeeds the
    breaker closes; if not, the next pause is twice as long. After `max_pauses` pauses in a row it gives up, and
    every call raises `ApiFatal`. What tries end with that were under way when it opened changes nothing: only the probe decides.

    It is bound to no event loop; the waiting of one that ended is forgotten with its tasks.
    """

    def __init__(
        self,
        server: str,
        *,
        failures: int,
        pause_s: float,
        max_pauses: int,
        clock: Clock,
        count: Callable[[int, float], None] = lambda pauses, seconds: None,
    ) -> None:
        self._server, self._limit, self._first_pause, self._max_pauses, self._clock = server, failures, pause_s, max_pauses, clock
        self._count = count  # told of pauses that begin, and of the seconds when the last of them is over
        self._failures = 0  # in a row, while closed
        self._pauses = 0  # in a row
        self._open_until: float | None = None
        self._opened_at = 0.0
        self._probing = False
        self._gave_up: str | None = None
        self._waiting: dict[object, asyncio.Future[None] | None] = {}  # the longest first; a future where one waits for news

    @property
    def open(self) -> bool:
        return self._open_until is not None

    async def admit(self) -> bool:
        """Waits while the breaker is open; returns whether this try is the probe. Raises `ApiFatal` once it gave up.

        Every admitted try must be told back: `succeeded`, `failed` or `abandoned`.
        """
        if not self.open:
            return False
        me = object()
        self._waiting[me] = None
        try:
            while self._open_until is not None:
                if self._gave_up is not None:
                    raise ApiFatal(self._gave_up)
                if (remaining := self._open_until - self._clock.now()) > 0 and not self._probing:
                    await self._clock.sleep(remaining)
                elif not self._probing and next(iter(self._waiting)) is me:
                    self._probing = True
                    return True
                else:
                    self._waiting[me] = asyncio.get_running_loop().create_future()
                    await self._waiting[me]
            return False
        finally:
            del self._waiting[me]
            self._tell_waiting()

    def succeeded(self, probe: bool) -> None:
        """The server answered, be it with a refusal of this request: it lives."""
        if probe:
            self._open_until, self._pauses = None, 0
            self._count(0, self._clock.now() - self._opened_at)
            self._end_probe()
        if not self.open:
            self._failures = 0

    def failed(self, probe: bool, sentence: str, retry_after: float | None = None) -> None:
        """The try failed in a way that speaks of the server, not of the request; `sentence` says how."""
        if probe:
            self._open(sentence, retry_after)
            self._end_probe()
        elif not self.open:
            self._failures += 1
            if self._failures >= self._limit:
                self._open(sentence, retry_after)

    def abandoned(self, probe: bool) -> None:
        """The try was cancelled: nothing is known. After a probe, another call probes."""
        if probe:
            self._end_probe()

    def _open(self, sentence: str, retry_after: float | None) -> None:
        self._failures = 0
        if self._pauses >= self._max_pauses:
            self._gave_up = (
                f"{self._server} gives no answer, {self._pauses} pauses did not help (last: {sentence}): "
                "see whether it runs, then give the same command again to continue."
            )
            self._count(0, self._clock.now() - self._opened_at)
            return
        if not self.open:
            self._opened_at = self._clock.now()
        pause = max(self._first_pause * 2.0**self._pauses, retry_after or 0.0)
        self._open_until = self._clock.now() + min(pause, LONGEST_PAUSE_S)
        self._pauses += 1
        self._count(1, 0.0)

    def _end_probe(self) -> None:
        self._probing = False
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        for future in self._waiting.values():
            if future is not None and not future.done():
                future.set_result(None)
