"""From a checked request to its replies, over the engine: who may wait, how long a reply may be, and its text as it comes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import numpy as np

from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling, Session
from epo_jax.serve.request import APIError, ChatRequest
from epo_jax.serve.text import StopStrings, TextStream
from epo_jax.strategist import Strategist

MAX_RETRY_AFTER = 60  # seconds


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_tokens: of one reply, None: as many as the context leaves. max_queue: replies that may wait for a slot. deadline: seconds a request
    may take, waiting included."""

    max_tokens: int | None = None
    max_queue: int = 256
    deadline: float = 300.0


@dataclasses.dataclass(frozen=True)
class Token:
    """A sampled token: the text that it completes ("" where that is none yet, and for the end token) and its log π, at temperature 1."""

    text: str
    logprob: float


@dataclasses.dataclass(frozen=True)
class Piece:
    """What came next in reply number `index`. finish_reason: "stop" or "length" in its last piece."""

    index: int
    text: str
    tokens: list[Token]
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int  # the end token included, over all replies of the request


class Replies:
    """Answers requests from one engine; it lives in one event loop."""

    def __init__(self, strategist: Strategist, engine: Engine, limits: Limits) -> None:
        self._strategist, self._engine, self._limits = strategist, engine, limits
        self._admitted = 0  # replies asked for and not yet given
        self._seconds = 1.0  # that a reply took lately
        self._reader = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")  # long prompts do not hold the event loop
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queue_length(self) -> int:
        """Replies that wait for a slot."""
        return max(0, self._admitted - self._engine.slots)

    async def answer(self, request: ChatRequest, tell: Callable[[Piece], None]) -> Usage:
        """Samples the request's `n` replies; `tell` hears of their pieces as they come, in the event loop.

        Raises `APIError` when it does not fit, has no place, takes too long, or the engine fails. Cancelling it frees its slots.
        """
        with self._place(request.n):
            try:
                async with asyncio.timeout(self._limits.deadline):
                    prompt = await self._read(request)
                    sampling = self._sampling(request, len(prompt))
                    counts = await _all_or_none(self._reply(request, prompt, sampling, index, tell) for index in range(request.n))
            except TimeoutError:
                seconds = f"{self._limits.deadline:g} seconds"
                raise APIError(504, f"the request took longer than {seconds}: ask for fewer tokens, or later.", code="deadline_exceeded") from None
            except APIError:
                raise
            except Exception as error:
                logging.getLogger(__name__).error("the engine failed", exc_info=error)
                raise APIError(500, "the strategist could not be sampled: the server's log says why.", code="engine_failed") from None
        return Usage(len(prompt), sum(counts))

    async def finished(self, seconds: float) -> None:
        """Waits until nothing is being answered, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    # --- who may come -------------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self, n: int) -> Iterator[None]:
        """Holds the places of n replies. Raises `APIError` 429 where the queue is full."""
        places = self._engine.slots + self._limits.max_queue
        if n > places:
            raise APIError(400, f"n is {n} and this server gives at most {places} replies at once: ask for fewer.", param="n", code="invalid_value")
        if self._admitted + n > places:
            wait = math.ceil(self._seconds * (self.queue_length + 1) / self._engine.slots)
            raise APIError(
                429, f"all {self._engine.slots} slots are taken and {self.queue_length} replies wait: try again later.",
                code="queue_full", retry_after=min(max(1, wait), MAX_RETRY_AFTER),
            )  # fmt: skip
        self._admitted += n
        self._idle.clear()
        try:
            yield
        finally:
            self._admitted -= n
            if not self._admitted:
                self._idle.set()

    async def _read(self, request: ChatRequest) -> list[int]:
        """The prompt's tokens. Text of the messages never becomes a special token."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, self._strategist.conversation.start, request.messages)
        except UserError as error:  # the template's own complaint, about roles in an order that it does not know
            raise APIError(400, str(error), param="messages", code="invalid_value") from None

    def _sampling(self, request: ChatRequest, prompt_tokens: int) -> Sampling:
        context, most, asked = self._engine.max_length, self._limits.max_tokens, request.max_tokens
        room = context - prompt_tokens
        if room < 1:
            raise APIError(
                400, f"the messages are {prompt_tokens} tokens and the context holds {context}, the reply included: send less.",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        if asked is not None and most is not None and asked > most:
            message = f"max_tokens is {asked} and this server gives at most {most}: ask for fewer."
            raise APIError(400, message, param="max_tokens", code="invalid_value")
        if asked is not None and asked > room:
            raise APIError(
                400, f"the messages are {prompt_tokens} tokens and max_tokens is {asked}, {prompt_tokens + asked} together, "
                f"and the context holds {context}: ask for at most {room}, or send less.",
                param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        tokens = min(room, most or room) if asked is None else asked
        return Sampling(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, max_new_tokens=tokens)

    # --- one reply ----------------------------------------------------------------------------------------------------------------------------

    async def _reply(self, request: ChatRequest, prompt: list[int], sampling: Sampling, index: int, tell: Callable[[Piece], None]) -> int:
        """Samples one reply and returns how many tokens it has."""
        begin = time.monotonic()
        session = self._engine.open(session_key(request.seed, index))
        reply = _Reply(self._engine, session, TextStream(self._strategist.tokenizer.decode), StopStrings(request.stop), index, tell)
        try:
            sampled = await self._engine.generate(session, prompt, sampling, reply.hear)
            reply.end(sampled.stop_reason)
        except asyncio.CancelledError:
            if not reply.stops.found or asyncio.current_task().cancelling():
                raise
            reply.end("stop")  # a stop string came, and the session was closed for it
        finally:
            self._engine.close(session)
        self._seconds += 0.1 * (time.monotonic() - begin - self._seconds)
        return reply.count


@dataclasses.dataclass
class _Reply:
    """The text of one reply while it is sampled."""

    engine: Engine
    session: Session
    text: TextStream
    stops: StopStrings
    index: int
    tell: Callable[[Piece], None]
    count: int = 0

    def hear(self, tokens: list[int], logprobs: list[float]) -> None:
        """The engine's new tokens. After a stop string nothing more is wanted."""
        told, heard = "", []
        for token, logprob in zip(tokens, logprobs, strict=True):
            text = self.text.add(token)
            told += self.stops.add(text)
            heard.append(Token(text, logprob))
            self.count += 1
            if self.stops.found:
                self.engine.close(self.session)
                break
        self.tell(Piece(self.index, told, heard))

    def end(self, reason: str) -> None:
        rest = "" if self.stops.found else self.stops.add(self.text.finish())
        rest += self.stops.finish()
        self.tell(Piece(self.index, rest, [], "stop" if self.stops.found else reason))


async def _all_or_none(calls: Iterable[Awaitable[int]]) -> list[int]:
    """The results of all calls, made at once; the first error ends the others too."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def session_key(seed: int | None, index: int) -> np.ndarray:
    """uint32[2]: the key of a request's reply number `index`. Reply 0 of a seed below 2**32 samples as `Engine.open(seed)` does."""
    if seed is None:
        return np.frombuffer(secrets.token_bytes(8), np.uint32)
    words = [seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF]
    return np.array(words, np.uint32) if index == 0 else np.random.SeedSequence([*words, index]).generate_state(2)
