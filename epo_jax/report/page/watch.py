"""Serves a run's page to this machine alone, and a newer one when the run's files have changed."""

from __future__ import annotations

import asyncio
import contextlib
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
        self._version, self._html, self._made = "", "", -SECONDS_BETWEEN

    async def newest(self) -> tuple[str, str]:
        """(version, page). Raises `UserError` where there never was one to show; a run that is damaged meanwhile keeps the last that was."""
        async with self._lock:
            version = await asyncio.to_thread(self._page.fingerprint)
            if version != self._version and self._clock() - self._made >= SECONDS_BETWEEN:
                try:
                    self._html = await asyncio.to_thread(self._page.html, watch=version)
                    self._version = version
                except UserError:
                    if not self._html:
                        raise
                self._made = self._clock()
            return self._version, self._html


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
            return web.Response(text=(await watched.newest())[1], content_type="text/html")
        except UserError as error:
            return web.Response(text=f"{error}\n", status=503)

    async def version(request: web.Request) -> web.Response:
        try:
            return web.Response(text=(await watched.newest())[0])
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
