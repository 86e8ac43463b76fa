"""Play in a thread of its own while the caller learns.

JAX runs both programs on the same devices, one after the other; what is gained is the time in which playing waits for something else: an actor
or an environment.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(play: Callable[[Callable[[], bool]], None]) -> Iterator[None]:
    """Runs `play(should_stop)` while the body runs, and waits for it. What `play` raises is raised when the body is done.

    If the body raises, `should_stop()` turns true, and what the body raised goes on when `play` has returned.
    """
    ended = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="play ahead") as thread:
        playing = thread.submit(play, ended.is_set)
        try:
            yield
        except BaseException:
            ended.set()
            raise
        playing.result()
