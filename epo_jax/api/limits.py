"""How fast calls may go: requests and tokens a minute, and how long a failed try waits before the next."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

from epo_jax.api.clock import Clock

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0


class Bucket:
    """A token bucket that holds a minute's worth and refills evenly, as servers' own limits do.

    `take` never refuses: it says how long the taker must wait, so whoever comes first goes first, and a demand larger than the bucket
    waits as long as it takes to fill. `per_minute` 0 means no limit.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._rate, self._capacity, self._clock = per_minute / 60.0, float(per_minute), clock
        self._level, self._filled_at = self._capacity, clock.now()

    def take(self, amount: float) -> float:
        """Takes `amount`; returns the seconds to wait before using it."""
        if not self._rate:
            return 0.0
        self._fill()
        self._level -= amount
        return max(0.0, -self._level / self._rate)

    def give_back(self, amount: float) -> None:
        """What was taken but not used; a negative amount was used beyond what was taken."""
        if self._rate:
            self._fill()
            self._level = min(self._capacity, self._level + amount)

    def _fill(self) -> None:
        now = self._clock.now()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now


class RateLimit:
    """Requests and tokens a minute. Tokens are an estimate before the call and settled with `settle` after it."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, clock: Clock) -> None:
        self._requests, self._tokens, self._clock = Bucket(requests_per_minute, clock), Bucket(tokens_per_minute, clock), clock

    async def wait(self, tokens: float) -> None:
        """Waits for one request of so many tokens; one that is cancelled meanwhile takes nothing."""
        delay = max(self._requests.take(1), self._tokens.take(tokens))
        if delay:
            try:
                await self._clock.sleep(delay)
            except BaseException:
                self._requests.give_back(1)
                self._tokens.give_back(tokens)
                raise

    def settle(self, estimated: float, used: float) -> None:
        self._tokens.give_back(estimated - used)


def backoff(retry: int, clock: Clock) -> float:
    """Seconds before the retry of that number (1 is the first): exponential with full jitter, so that callers spread out."""
    return clock.random() * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (retry - 1))


def retry_after(headers: Mapping[str, str], clock: Clock) -> float | None:
    """The seconds that a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date); None where it does not say.

    RFC 9110, section 10.2.3. A value that is no number and no date is ignored; a date in the past asks for no wait.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0.0:
            return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - clock.wall())
    except (ValueError, TypeError, OverflowError):
        return None
