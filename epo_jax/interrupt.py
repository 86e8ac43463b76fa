"""Stopping politely: SIGTERM, a notice (preemption.py) or the first Ctrl-C asks, a second Ctrl-C insists."""

from __future__ import annotations

import signal
import types


class Stopped(Exception):
    """A request to stop was honoured; everything is saved."""


class StopRequest:
    """Set by SIGTERM or Ctrl-C; loops look at `requested` between two pieces of work, save, and leave.

    A context manager: the previous signal handlers come back on exit. A second Ctrl-C raises `KeyboardInterrupt` at once. SIGTERM never does: a
    machine that goes sends it after its own notice, and a scheduler more than once, while the run is saving. Where several processes make one
    run, hosts/stopping.py has the request that they share.
    """

    def __init__(self) -> None:
        self.requested = self._interrupted = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def before_step(self) -> bool:
        """Whether to stop before the next optimizer step: the same answer at every process."""
        return self.requested

    def call_off(self) -> None:
        """What other processes play or judge need not end: this one cannot go on. Nothing where there are no others."""

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.requested = True
