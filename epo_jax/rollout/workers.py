"""A pool of worker processes that run environments, so that they neither wait for each other nor for the engine's thread: `config.rollout.workers`.

What is played is the same as without. A worker that dies takes its episodes with it: they are masked, counted and shown, and another worker takes
its place.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

import envs
from epo_jax.errors import UserError
from epo_jax.rollout.environments import EnvironmentFailed, View
from epo_jax.rollout.tasks import TaskSet


class Workers:
    """`count` processes, started when they are first needed. A context manager: on exit they end."""

    def __init__(self, count: int) -> None:
        self._workers: list[_Worker | None] = [None] * count
        self._numbers = itertools.count()

    async def begin(self, task_set: TaskSet, task: Any) -> RunningElsewhere:
        """An environment of the task set at the start of a task, in the worker that has fewest. Raises `EnvironmentFailed`."""
        for place, worker in enumerate(self._workers):
            if worker is None or worker.dead:
                if worker is not None:
                    worker.close()
                self._workers[place] = _Worker()
        worker = min(self._workers, key=lambda worker: len(worker.running))
        running, name = RunningElsewhere(worker, next(self._numbers)), task_set.environment
        try:
            running.view = await worker.ask(running.number, "begin", (name, envs.REGISTRY.get(name), task_set.options, task))
        except BaseException:
            running.close()
            raise
        return running

    def close(self) -> None:
        """Ends all workers; the next `begin` starts others."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                worker.close()
                self._workers[place] = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RunningElsewhere:
    """An environment in a worker."""

    view: View

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker, self.number = worker, number
        worker.running.add(number)

    async def step(self, action: str) -> View:
        """Raises `EnvironmentFailed`."""
        self.view = await self._worker.ask(self.number, "step", action)
        return self.view

    def close(self) -> None:
        if self.number in self._worker.running:
            self._worker.running.discard(self.number)
            self._worker.forget(self.number)


class _Worker:
    """One process, and the thread that talks to it: one question after the other, as it can answer only one at a time."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.dead = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "epo_jax.rollout.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is for the run
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="environments")

    async def ask(self, number: int, what: str, given: Any) -> View:
        kind, answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._asked, number, what, given)
        if kind != "view":
            raise {"failed": EnvironmentFailed, "refused": UserError}[kind](answer)
        return answer

    def forget(self, number: int) -> None:
        self._thread.submit(self._told, number, "close", None)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # an environment that does not come back
            self._process.kill()
            self._process.wait()

    def _asked(self, number: int, what: str, given: Any) -> tuple[str, Any]:
        try:
            self._connection.send((number, what, given))
            return self._connection.recv()
        except (EOFError, OSError):
            self.dead = True
            return "failed", "its worker process died: killed, or out of memory"

    def _told(self, number: int, what: str, given: Any) -> None:
        with contextlib.suppress(OSError):
            self._connection.send((number, what, given))
