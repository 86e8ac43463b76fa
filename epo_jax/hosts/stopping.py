"""A request to stop that the processes of a run share: whoever gets SIGTERM asks for all."""

from __future__ import annotations

import threading
import time

from jax._src import distributed
from jax.errors import JaxRuntimeError

from epo_jax.hosts import exchange
from epo_jax.interrupt import StopRequest

KEY = f"{exchange.PREFIX}/stop"
LOOK_S = 0.5  # between two looks at what the others ask for
# A process can look before step n + 2 only when the first of its devices has done step n, in which every process took part after its own look
# before step n. So a request that is made before step n is seen by everyone before step n + 2, and nobody has begun that one.
STEPS = 2


class SharedStop(StopRequest):
    """`requested` soon after any process was asked. Where all must decide alike: `before_step`, and the gathering that ends a phase (shares.py)."""

    def __init__(self) -> None:
        self._here = self._published = False
        self._steps = 0
        self._at: int | None = None  # the step before which everyone stops
        self._looked = 0.0
        super().__init__()

    def __enter__(self) -> SharedStop:
        exchange.while_waiting = self._tell
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        exchange.while_waiting = None
        super().__exit__(*error)

    @property
    def requested(self) -> bool:
        self._tell()
        if self._at is None and time.monotonic() - self._looked > LOOK_S:
            self._look()
        return self._here or self._at is not None

    @requested.setter
    def requested(self, value: bool) -> None:
        self._here = value

    def before_step(self) -> bool:
        """The same answer at every process, which call it in lockstep, once before each optimizer step."""
        self._steps += 1
        self._tell()
        if self._at is None:
            self._look()
        return self._at is not None and self._steps >= self._at

    def call_off(self) -> None:
        self._here = True

    def _tell(self) -> None:
        """Tells the others what this process was asked. By the main thread, which takes the steps: one that plays meanwhile knows not which is next."""
        if not self._here or self._published or threading.current_thread() is not threading.main_thread():
            return
        self._published = True
        try:
            distributed.global_state.client.key_value_set(KEY, str(self._steps + STEPS))
        except JaxRuntimeError:  # another process was quicker: its step counts
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        found = _value()
        self._at = None if found is None else int(found)


def _value() -> str | None:
    try:
        return distributed.global_state.client.key_value_try_get(KEY)
    except JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
