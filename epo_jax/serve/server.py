"""The HTTP server: routes, key, limits, streaming, start and stop.

`serving` runs one in the caller's event loop, `in_background` in a thread of its own; both stop it at the end of the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import jax.numpy as jnp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.serve.measures import Measures
from epo_jax.serve.replies import Limits, Piece, Replies, Usage
from epo_jax.serve.request import APIError, ChatRequest, parse
from epo_jax.strategist import Strategist

LONGEST_CONTEXT = 4096  # tokens, where Options.max_context is not given
PATHS = ("/v1/models", "/v1/chat/completions", "/health", "/metrics")
REASONS = {404: (f"no such path: there are {', '.join(PATHS)}.", "not_found"), 405: ("this path does not take this method.", "method_not_allowed")}
CLIENT_GONE = 499  # what a request is counted as whose client left


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve. port 0: a free one. api_key: None asks for none. max_context: tokens of a request and its reply, None: what the model knows,
    at most LONGEST_CONTEXT. decode_chunk: tokens between two looks at the queue, and in one piece of a stream. grace: seconds that
    running requests have when the server stops."""

    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = dataclasses.field(default=None, repr=False)
    slots: int = 32
    max_context: int | None = None
    max_body_bytes: int = 1 << 20
    decode_chunk: int = 8
    dtype: str = "float32"
    model_name: str | None = None
    grace: float = 5.0
    limits: Limits = Limits()


class Server:
    """A strategist's server. `start` and `stop` belong to one event loop; `url` is known after `start`."""

    def __init__(self, strategist: Strategist, options: Options = Options()) -> None:
        self._options = options
        self._strategist = strategist
        self.model_name = options.model_name or strategist.name
        self.engine = Engine(
            strategist.config,
            strategist.params,
            stop_ids=strategist.conversation.stop_ids,
            pad_id=strategist.tokenizer.pad_id,
            slots=options.slots,
            max_length=options.max_context or min(strategist.config.max_positions, LONGEST_CONTEXT),
            decode_chunk=options.decode_chunk,
            compute_dtype=jnp.dtype(options.dtype),
        )
        self._born = int(time.time())
        self._stopping = False
        self.url = ""

    async def start(self) -> None:
        """Listens. Raises `UserError` where it cannot."""
        self.replies = Replies(self._strategist, self.engine, self._options.limits)
        self.measures = Measures(self.engine, lambda: self.replies.queue_length)
        application = web.Application(client_max_size=self._options.max_body_bytes, middlewares=[self._outermost])
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        # A client that leaves cancels its handler, and so frees its slot. No access log: /metrics counts.
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            where = f"{self._options.host}:{self._options.port}"
            raise UserError(f"cannot listen on {where} ({error.strerror or error}): choose another --host or --port, or port 0.") from error
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def warm_up(self) -> None:
        """Samples one token, so that the first client does not wait for the compiler. Raises `UserError` where the weights give no numbers."""
        session = self.engine.open(0)
        try:
            prompt = self._strategist.conversation.start([{"role": "user", "content": "Hello."}])
            await self.engine.generate(session, prompt, Sampling(max_new_tokens=1))
        except FloatingPointError as error:
            raise UserError(f"{self.model_name} cannot be served: {error}") from error
        finally:
            self.engine.close(session)

    async def stop(self) -> None:
        """Accepts nothing more, gives running requests `grace` seconds, and ends."""
        self._stopping = True
        for site in list(self._runner.sites):
            await site.stop()
        await self.replies.finished(self._options.grace)
        await self._runner.cleanup()
        self.replies.close()
        self.engine.shutdown()

    # --- every request ------------------------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """The key, errors in OpenAI's shape, and the count."""
        begin, status = time.monotonic(), CLIENT_GONE
        try:
            try:
                self._check_may_come(request)
                response = await handler(request)
            except APIError as error:
                response = _error_response(error)
            except web.HTTPRequestEntityTooLarge:
                response = _error_response(APIError(413, f"the body is over {self._options.max_body_bytes} bytes: send less.", code="body_too_large"))
            except web.HTTPException as error:
                sentence, code = REASONS.get(error.status, (f"{error.reason}.", "bad_request"))
                response = _error_response(APIError(error.status, sentence, code=code))
            except ConnectionError as error:  # the client left while it was being told
                raise asyncio.CancelledError from error
            except Exception as error:  # a fault of ours; what the client sent stays out of the log
                logging.getLogger(__name__).error("a request failed", exc_info=error)
                response = _error_response(APIError(500, "the server failed: its log says why.", code="internal_error"))
            status = response.status
            return response
        finally:
            path = request.path if request.path in PATHS else "other"
            self.measures.answered(path, status, time.monotonic() - begin if path == "/v1/chat/completions" else None)

    def _check_may_come(self, request: web.Request) -> None:
        if self._stopping and request.path != "/health":
            raise APIError(503, "the server is stopping.", code="stopping", retry_after=5)
        key = self._options.api_key
        if key is None or request.path == "/health":
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key.encode())
        if scheme.lower() != "bearer" or not right:
            raise APIError(401, "the API key is missing or wrong: send it as Authorization: Bearer KEY.", code="invalid_api_key")

    # --- the routes ---------------------------------------------------------------------------------------------------------------------------

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.model_name, "object": "model", "created": self._born, "owned_by": "epo_jax", "max_model_len": self.engine.max_length}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "stopping" if self._stopping else "ok"}, status=503 if self._stopping else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.measures.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        if http.content_type != "application/json":  # so that no web page can ask without the browser's leave
            raise APIError(415, "the body must be JSON: send the header Content-Type: application/json.", code="invalid_content_type")
        try:
            async with asyncio.timeout(self._options.limits.deadline):
                body = await http.read()
        except TimeoutError:
            raise APIError(408, "the body did not arrive in time.", code="deadline_exceeded") from None
        except web.RequestPayloadError:
            raise APIError(400, "the body is broken off or not encoded as its headers say: send it again.", code="invalid_body") from None
        request = parse(body, model=self.model_name, max_messages=self.engine.max_length)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.model_name}
        return await (self._stream if request.stream else self._whole)(http, request, head)

    async def _whole(self, _: web.Request, request: ChatRequest, head: dict[str, Any]) -> web.Response:
        pieces: list[list[Piece]] = [[] for _ in range(request.n)]
        usage = await self.replies.answer(request, lambda piece: pieces[piece.index].append(piece))
        self.measures.used(usage)
        choices = []
        for index, heard in enumerate(pieces):
            message = {"role": "assistant", "content": "".join(piece.text for piece in heard), "refusal": None}
            logprobs = _logprobs(heard) if request.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": heard[-1].finish_reason})
        return web.json_response({**head, "object": "chat.completion", "choices": choices, "usage": _usage(usage)})

    async def _stream(self, http: web.Request, request: ChatRequest, head: dict[str, Any]) -> web.StreamResponse:
        """Server-sent events. The status waits for the first piece, so that what fails before it still has its own."""
        head |= {"object": "chat.completion.chunk"} | ({"usage": None} if request.include_usage else {})
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()
        answer = asyncio.create_task(self.replies.answer(request, queue.put_nowait))
        answer.add_done_callback(lambda task: (task.cancelled() or task.exception(), queue.put_nowait(None)))  # its error counts as seen
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})

        async def send(event: Any) -> None:
            await response.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())

        try:
            while piece := await queue.get():
                if not response.prepared:
                    await response.prepare(http)
                    for index in range(request.n):
                        await send({**head, "choices": [_chunk(index, {"role": "assistant", "content": ""})]})
                if piece.text or (piece.tokens and request.logprobs):
                    await send({**head, "choices": [_chunk(piece.index, {"content": piece.text}, _logprobs([piece]) if request.logprobs else None)]})
                if piece.finish_reason:
                    await send({**head, "choices": [_chunk(piece.index, {}, finish_reason=piece.finish_reason)]})
            usage = await answer
            self.measures.used(usage)
            if request.include_usage:
                await send({**head, "choices": [], "usage": _usage(usage)})
            await send("[DONE]")
        except APIError as error:
            if not response.prepared:
                raise
            await send(error.body())
        finally:
            answer.cancel()
        await response.write_eof()
        return response


def _chunk(index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(pieces: list[Piece]) -> dict[str, Any]:
    tokens = [token for piece in pieces for token in piece.tokens]
    listed = [{"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()), "top_logprobs": []} for token in tokens]
    return {"content": listed, "refusal": None}


def _usage(usage: Usage) -> dict[str, int]:
    return {**dataclasses.asdict(usage), "total_tokens": usage.prompt_tokens + usage.completion_tokens}


def _error_response(error: APIError) -> web.Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(error.body(), status=error.status, headers=headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`; a name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- running one ------------------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(strategist: Strategist, options: Options = Options()) -> AsyncIterator[Server]:
    """A server in this event loop, on a free port unless `options` names one."""
    server = Server(strategist, options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.contextmanager
def in_background(strategist: Strategist, options: Options = Options()) -> Iterator[Server]:
    """A server in an event loop and a thread of its own, for callers that have none."""
    server = Server(strategist, options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
