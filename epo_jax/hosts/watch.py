"""The watch beside a process of a run that has several: where one process dies, the others are ended, with a sentence that names it.

A program of its own, which every process starts (joining.py) and which outlives it by a moment: it needs no JAX, so it also sees the end of a process
that is killed, aborted by its runtime, or stuck in a collective that will never be answered. The watches of all processes are connected to the
first one's, which passes on what it hears. jax.distributed's own heartbeats stay on behind it; they end processes too, only later and in other words.

    stdin   from the process: the token and where the first watch listens, as one JSON line; then "done", or {"code", "why"} of its end
    stdout  to the process: {"port"} of the first watch, {"watching": whether} of the others, when they are connected; {"heard"} of its end;
            {"end": code} when it must end
    stderr  the process's own: the sentence

Between watches, a JSON object a line: {"token", "process", "host"} and {"welcome"} at first, {"ping"}, {"process", "host", "code", "why"} of an end,
{"done"}. The first process ends last, as it holds what jax.distributed lives on: without it, the others would be aborted by their runtime.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable
from typing import Any

PING_S = 5.0
SILENCE_S = 45.0  # without a word from a watch: its machine is gone
GRACE_S = 5.0  # for a process to end by itself before it is killed
WITHOUT_A_WORD = "it ended without a word: killed, out of memory, or aborted by its runtime"
UNREACHABLE = "its machine cannot be reached any more"
LONGEST_LINE = 1 << 16


class Watch:
    """Of process `index` out of `count`. own: the process that is watched."""

    def __init__(self, index: int, count: int, own: int) -> None:
        self._index, self._count, self._own, self._host = index, count, own, socket.gethostname()
        self._others: dict[int, asyncio.StreamWriter] = {}  # by process: at the first watch all the others, elsewhere the first
        self._gone: dict[int, asyncio.Event] = collections.defaultdict(asyncio.Event)
        self._ending = False  # somebody's end is known, and everyone's follows
        self._over = asyncio.Event()  # the process has ended

    async def run(self) -> None:
        """Until the process has ended, by itself or because another one has."""
        commands = await _reader(sys.stdin.buffer)
        start = json.loads(await commands.readline())
        if self._index == 0:
            at = _any_port()
            await asyncio.start_server(lambda reader, writer: self._greet(reader, writer, start["token"]), sock=at, limit=LONGEST_LINE)
            print(json.dumps({"port": at.getsockname()[1]}), flush=True)
        else:
            try:
                reader, writer = await asyncio.open_connection(start["address"], start["port"], limit=LONGEST_LINE)
            except OSError as error:
                sentence = f"its watch cannot reach {start['address']}:{start['port']} ({error.strerror or error})"
                print(f"epo_jax: process {self._index}: {sentence}; if a process dies, only JAX's own heartbeats end the others.", file=sys.stderr)
                print(json.dumps({"watching": False}), flush=True)
                return
            self._others[0] = writer
            self._tell(writer, {"token": start["token"], "process": self._index, "host": self._host})
            self._keep(asyncio.create_task(self._hear(0, start["address"], reader)))
        self._keep(asyncio.create_task(self._follow(commands)))
        while not await _at_most(PING_S, self._over.wait()):
            self._tell_all({"ping": 1})
        await asyncio.gather(*(_flushed(writer) for writer in self._others.values()))

    # --- the own process --------------------------------------------------------------------------------------------

    async def _follow(self, commands: asyncio.StreamReader) -> None:
        """Passes on how the process ends."""
        line = await commands.readline()
        if line.strip() == b"done":
            self._tell_all({"done": 1})
        else:
            told = json.loads(line) if line else {"code": 1, "why": WITHOUT_A_WORD}
            if not self._ending:
                self._ending = True
                self._tell_all({"process": self._index, "host": self._host} | told)
            if line:
                await self._others_gone()
                print(json.dumps({"heard": 1}), flush=True)
                await _at_most(GRACE_S, commands.read())
        self._over.set()

    async def _end_own(self, end: dict[str, Any]) -> None:
        """Says why, and ends the process, the first one last. Only the first end that is heard of counts."""
        if self._ending or self._over.is_set():
            return
        self._ending = True
        self._tell_all(end, but=end["process"])
        print(
            f"epo_jax: process {end['process']} of {self._count} (on {end['host']}) has ended, so this one ends too: {end['why'].rstrip('.')}. "
            "The same command, given on every host, continues the run.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        await self._others_gone()
        print(json.dumps({"end": end["code"]}), flush=True)
        if not await _at_most(GRACE_S, self._over.wait()):
            os.kill(self._own, signal.SIGKILL)
            self._over.set()

    # --- the other watches ------------------------------------------------------------------------------------------

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        """Another watch, if it knows the token; anything else that connects is sent away."""
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), SILENCE_S))
            known = hello["token"] == token and 0 < hello["process"] < self._count and hello["process"] not in self._others
        except (ValueError, KeyError, TypeError, OSError, TimeoutError):
            known = False
        if not known:
            writer.close()
            return
        self._others[hello["process"]] = writer
        self._tell(writer, {"welcome": 1})
        await self._hear(hello["process"], str(hello["host"]), reader)

    async def _hear(self, process: int, host: str, reader: asyncio.StreamReader) -> None:
        """Listens to another watch until it has gone or falls silent."""
        explained = False
        while (message := await self._next(reader)) is not None:
            if "welcome" in message:
                print(json.dumps({"watching": True}), flush=True)
            if "why" in message:
                self._keep(asyncio.create_task(self._end_own({"process": process, "host": host, "code": 1} | message)))
            explained |= "why" in message or "done" in message
        self._gone[process].set()
        if not explained:
            await self._end_own({"process": process, "host": host, "code": 1, "why": UNREACHABLE})

    async def _next(self, reader: asyncio.StreamReader) -> dict[str, Any] | None:
        try:
            line = await asyncio.wait_for(reader.readline(), SILENCE_S)
            message = json.loads(line) if line else None
        except (OSError, TimeoutError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    async def _others_gone(self) -> None:
        """At the first watch: until the others have ended, or should have. Elsewhere nothing hangs on this process."""
        if self._index == 0:
            await _at_most(GRACE_S, asyncio.gather(*(self._gone[process].wait() for process in self._others)))

    def _tell_all(self, message: dict[str, Any], *, but: int | None = None) -> None:
        for other, writer in self._others.items():
            if other != but:
                self._tell(writer, message)

    def _tell(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")

    def _keep(self, task: asyncio.Task[None]) -> None:
        """A watch that fails must not look like one that watches."""
        task.add_done_callback(lambda task: task.cancelled() or task.exception() is None or os._exit(70))


def _any_port() -> socket.socket:
    """A listening socket on a free port, of both families where there are both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


async def _reader(stream: Any) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    return reader


async def _flushed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # whoever does not listen any more
        await _at_most(GRACE_S, writer.drain())
        writer.close()
        await _at_most(GRACE_S, writer.wait_closed())


async def _at_most(seconds: float, waited_for: Awaitable[Any]) -> bool:
    """Whether it came in time."""
    try:
        await asyncio.wait_for(waited_for, seconds)
    except TimeoutError:
        return False
    return True


async def _main() -> None:
    await Watch(int(sys.argv[1]), int(sys.argv[2]), os.getppid()).run()


if __name__ == "__main__":
    asyncio.run(_main())
