"""Serves a run's page to this machine alone: whoever loads it gets what the files hold now, and a page that is open hears of what is complete."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import pathlib
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from epo_jax.errors import UserError
from epo_jax.report.page.run_page import RunPage

HOST = "127.0.0.1"
SECONDS_BETWEEN = 3.0  # two pages, at least: a large one takes a second to make


class Watched:
    """The newest page of a run, made when somebody asks and something has changed. `clock` counts seconds."""

    def __init__(self, page: RunPage, clock: Callable[[], float] = time.monotonic) -> None:
        self._page, self._clock = page, clock
        self._lock = asyncio.Lock()
        self._version, self._files, self._html, self._made = "", "", "", -SECONDS_BETWEEN

    async def newest(self) -> str:
        """The page. Raises `UserError` where there never was one to show; a run that is damaged meanwhile keeps the last that was."""
        async with self._lock:
            files = await asyncio.to_thread(self._page.fingerprint)
            if files != self._files:
                await self._make(await self._complete(), files)
            return self._html

    async def version(self) -> str:
        """Changes with what is complete, and not with every episode that ends in between: a page that is open is loaded again for it."""
        async with self._lock:
            complete = await self._complete()
            if complete != self._version:
                await self._make(complete, await asyncio.to_thread(self._page.fingerprint))
            return self._version

    async def _complete(self) -> str:
        return await asyncio.to_thread(complete_rows, self._page.folder / "metrics.jsonl")

    async def _make(self, version: str, files: str) -> None:
        """version, files: as they were before the page reads them, so that what changes meanwhile is seen afterwards."""
        if self._clock() - self._made < SECONDS_BETWEEN:
            return
        try:
            self._html = await asyncio.to_thread(self._page.html, watch=version)
            self._version, self._files = version, files
        except UserError:
            if not self._html:
                raise
        self._made = self._clock()


def complete_rows(metrics: pathlib.Path) -> str:
    """Changes when a round, a cycle or an evaluation ends: when another row of `metrics.jsonl` is whole that is not of one step."""
    try:
        lines = metrics.read_bytes().splitlines(keepends=True)
    except OSError:
        lines = []
    told = [line for line in lines if line.endswith(b"\n") and not line.startswith((b'{"kind": "step"', b'{"kind": "warm_start"'))]
    return hashlib.sha256(b"".join(told)).hexdigest()[:16]


@contextlib.asynccontextmanager
async def serving(watched: Watched, port: int) -> AsyncIterator[str]:
    """Listens on loopback; yields the address. port 0: a free one. Raises `UserError` where it cannot listen."""
    allowed: set[str] = set()

    @web.middleware
    async def only_for_this_machine(request: web.Request, handler: Callable) -> web.StreamResponse:
        """A page elsewhere can make its own name point here; what the browser then sends is that name."""
        if request.host not in allowed:
            raise web.HTTPForbidden(text="This address serves this machine alone.\n")
        response = await handler(request)
        response.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"})
        return response

    async def page(request: web.Request) -> web.Response:
        try:
            return web.Response(text=await watched.newest(), content_type="text/html")
        except UserError as error:
            return web.Response(text=f"{error}\n", status=503)

    async def version(request: web.Request) -> web.Response:
        try:
            return web.Response(text=await watched.version())
        except UserError as error:
            return web.Response(text=f"{error}\n", status=503)

    application = web.Application(middlewares=[only_for_this_machine])
    application.router.add_get("/", page)
    application.router.add_get("/version", version)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise UserError(f"cannot listen on {HOST}:{port} ({error.strerror or error}): choose another --port, or 0 for a free one.") from error
        number = runner.addresses[0][1]
        allowed.update({f"{HOST}:{number}", f"localhost:{number}"})
        yield f"http://{HOST}:{number}/"
    finally:
        await runner.cleanup()
