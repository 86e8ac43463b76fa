"""Time and chance as the client sees them; a test gives its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable


@dataclasses.dataclass(frozen=True)
class Clock:
    """`now` counts seconds from anywhere, `wall` seconds since 1970 (for dates in headers), `random` gives [0, 1).

    What runs within `timeout(seconds)` for longer is cancelled there and raises `TimeoutError`.
    """

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    timeout: Callable[[float], contextlib.AbstractAsyncContextManager[object]] = asyncio.timeout
    random: Callable[[], float] = random.random
