"""The client of one model behind an OpenAI-compatible API: cache, budget, limits, retries and pauses around single tries.

    reply = await client.complete([{"role": "user", "content": "Where is the mug?"}])

A call goes through these stations: the cache, an equal call under way, a free place (`concurrency`), the budget, the rate limits, the
breaker, one try (exchange.py); after a fault it waits and begins again at the free place, so that a waiting call takes up none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from epo_jax.api.breaker import Breaker
from epo_jax.api.budget import Budget, Reservation
from epo_jax.api.cache import Reply, ReplyCache, reply_key
from epo_jax.api.clock import Clock
from epo_jax.api.exchange import Answer, Server
from epo_jax.api.failures import FATAL, REFUSED, ApiError, ApiFatal, BudgetSpent, Fault, NotInCache
from epo_jax.api.limits import RateLimit, backoff
from epo_jax.api.settings import ApiSettings, host
from epo_jax.api.totals import Totals
from epo_jax.errors import UserError

__all__ = ["ApiClient", "ApiError", "ApiFatal", "BudgetSpent", "NotInCache", "Reply"]

# What a prompt may have in tokens beyond its bytes: what a chat template adds to it and to each message. Byte-level tokenizers make at most
# one token of a byte, so bytes + these is an upper bound; English has about four bytes a token.
TOKENS_A_PROMPT, TOKENS_A_MESSAGE, BYTES_A_TOKEN = 128, 16, 4
STRICTNESS = ("schema", "json_object", "text")
THEN = "Put it right, then give the same command again to continue."


@dataclasses.dataclass
class _InLoop:
    """What is bound to one event loop."""

    loop: asyncio.AbstractEventLoop
    places: asyncio.Semaphore
    under_way: dict[str, asyncio.Future[Reply | Exception]] = dataclasses.field(default_factory=dict)
    server: Server | None = None
    keeper: AsyncGenerator[None] | None = None  # closes the server with the loop


class ApiClient:
    """Asks one model. Any number of calls may be made at once; what they share is described in the module's docstring.

    The client outlives event loops: it may be used in several `asyncio.run` one after the other (not in two at once). Its connections end
    with the loop, or earlier with `close()`, after which the next call opens new ones. Close cache and budget yourself: they may be shared.

    Raises `UserError` at once where the address or the key cannot do.
    """

    def __init__(self, settings: ApiSettings, *, cache: ReplyCache | None, budget: Budget, clock: Clock | None = None) -> None:
        self.settings, self.cache, self.budget = settings, cache, budget
        self.totals = Totals()
        self._clock = clock or Clock()
        self._address = settings.server()
        self._key = "" if self.offline else settings.read_key()
        self._limit = RateLimit(settings.requests_per_minute, settings.tokens_per_minute, self._clock)
        self._breaker = Breaker(
            f"the model {settings.model} at {host(self._address)}",
            failures=settings.breaker_failures,
            pause_s=settings.breaker_pause_s,
            max_pauses=settings.breaker_max_pauses,
            clock=self._clock,
            count=self._count_pauses,
        )
        self._strictness = 0 if settings.structured == "auto" else STRICTNESS.index(settings.structured)
        self._strictness_known = settings.structured != "auto"
        self._length_field = "max_tokens"
        self._refusals_before_any_answer = 0
        self._in_loop: _InLoop | None = None

    @property
    def offline(self) -> bool:
        """Whether replies come from the cache alone."""
        return self.cache is not None and self.cache.offline

    @property
    def name(self) -> str:
        """The model's name, as servers know it."""
        return self.settings.model

    @property
    def paused(self) -> bool:
        """Whether all calls wait because the server failed again and again."""
        return self._breaker.open

    async def complete(self, messages: Sequence[dict[str, str]], *, schema: dict[str, Any] | None = None, salt: str = "") -> Reply:
        """The model's reply to `messages` (each with "role" and "content").

        `schema` is a JSON schema the reply should fit (see structured.py, which checks that it does); OpenAI's servers want every object in
        it to have `additionalProperties: false` and all properties required. `salt` sets apart calls that are equal otherwise (cache.py).

        A refusal and a reply cut off at `max_tokens` are replies: look at `refusal` and `finish_reason`.

        Raises `ApiError` where this call failed for good (the episode is masked), and `ApiFatal` or `BudgetSpent`, both `UserError`, where
        every further call would: let those pass, they stop the run.
        """
        messages = [{"role": _sound(message["role"]), "content": _sound(message["content"])} for message in messages]
        key = reply_key(self.settings.model, messages, self._parameters(), schema, salt)
        self.totals.calls += 1
        here = await self._here()
        while True:
            if self.cache is not None and (reply := self.cache.find(key)) is not None:
                self.totals.cached += 1
                return reply
            if self.offline:
                self.totals.failed += 1
                raise NotInCache(f"the reply cache {self.cache.path} holds no reply of {self.settings.model} to this")
            if (flight := here.under_way.get(key)) is None:
                return await self._lead(here, key, messages, schema)
            await asyncio.wait([flight])
            if flight.cancelled():  # whoever led it was: someone else leads
                continue
            outcome = flight.result()
            if isinstance(outcome, Exception):
                self.totals.failed += 1
                raise type(outcome)(*outcome.args)
            self.totals.cached += 1
            return dataclasses.replace(outcome, cached=True)

    async def close(self) -> None:
        """Closes the connections of this event loop. Calls under way should have ended; the client may be used again."""
        if self._in_loop is not None and self._in_loop.loop is asyncio.get_running_loop():
            here, self._in_loop = self._in_loop, None
            if here.keeper is not None:
                await here.keeper.aclose()

    # --- one call -------------------------------------------------------------------------------------------------

    async def _lead(self, here: _InLoop, key: str, messages: list[dict[str, str]], schema: dict[str, Any] | None) -> Reply:
        """Asks, keeps the reply, and gives it to all who wait for the same."""
        flight = here.under_way[key] = here.loop.create_future()
        try:
            reply = await self._ask_until_answered(here, messages, schema)
            if self.cache is not None:  # no await between the answer and this: what was answered is kept, whatever is cancelled
                reply = self.cache.store(key, reply, self.settings.model)
            flight.set_result(reply)
            return reply
        except (ApiError, UserError) as error:
            self.totals.failed += 1
            flight.set_result(error)
            raise
        finally:
            del here.under_way[key]
            flight.cancel()  # no effect where it has a result

    async def _ask_until_answered(self, here: _InLoop, messages: list[dict[str, str]], schema: dict[str, Any] | None) -> Reply:
        settings, used_s, failed = self.settings, 0.0, 0
        strictness = self._strictness
        while True:
            if failed:
                self.totals.retries += 1
            body = self._body(messages, schema, strictness)
            outcome, seconds = await self._try(here, body, min(settings.timeout_s, settings.deadline_s - used_s))
            used_s += seconds
            if isinstance(outcome, Reply):
                if schema is not None:
                    self._strictness, self._strictness_known = max(self._strictness, strictness), True
                return outcome
            fault = outcome
            if fault.kind == REFUSED:
                if body.get("max_tokens") and "max_completion_tokens" in fault.about:
                    self._length_field = "max_completion_tokens"
                    continue
                if "response_format" in body and not self._strictness_known and strictness + 1 < len(STRICTNESS):
                    strictness += 1
                    continue
                self._give_up_on_refusals(fault)
                raise ApiError(f"{self._named()} refused the request: {fault.sentence}")
            failed += 1
            if failed > settings.retries:
                raise ApiError(f"{self._named()} gave no answer in {failed} tries (the last: {fault.sentence})")
            wait = backoff(failed, self._clock)
            if fault.retry_after is not None:
                wait += fault.retry_after
            if used_s + wait >= settings.deadline_s:
                asked = f", and it asks to wait {fault.retry_after:g} s" if fault.retry_after else ""
                raise ApiError(f"{self._named()} gave no answer within {settings.deadline_s:g} s, {failed} tries (the last: {fault.sentence}{asked})")
            used_s += wait
            self.totals.seconds_waiting += wait
            await self._clock.sleep(wait)

    async def _try(self, here: _InLoop, body: dict[str, Any], timeout_s: float) -> tuple[Reply | Fault, float]:
        """One try, when its turn comes; returns what came of it and the seconds that the server took."""
        settings, queued = self.settings, self._clock.now()
        most_prompt, likely_prompt = _prompt_tokens(body)
        async with here.places:
            reservation = await self.budget.reserve(most_prompt + settings.max_tokens, self._money(most_prompt, settings.max_tokens))
            likely, used = likely_prompt + settings.max_tokens, 0
            try:
                await self._limit.wait(likely)
                self.totals.seconds_waiting += self._clock.now() - queued
                probe = await self._breaker.admit()
                start = self._clock.now()
                try:
                    self.totals.tries += 1
                    answer = await here.server.ask(body, timeout_s)
                except Fault as fault:
                    self._judge_server(fault, probe)
                    self.totals.faults[fault.kind] += 1
                    if fault.charged:
                        reservation.settle_in_full()
                        used = likely
                    if fault.kind == FATAL:
                        raise ApiFatal(f"{self._named()} refuses: {fault.sentence}. {THEN}") from None
                    return fault, self._clock.now() - start
                except BaseException:  # cancelled in the middle: it may have been charged
                    self._breaker.abandoned(probe)
                    reservation.settle_in_full()
                    raise
                self._breaker.succeeded(probe)
                reply = self._settled(answer, reservation, most_prompt)
                used = reply.prompt_tokens + reply.completion_tokens
                return reply, self._clock.now() - start
            finally:
                reservation.settle(0, 0.0)  # no effect where it is settled
                self._limit.settle(likely, used)

    def _judge_server(self, fault: Fault, probe: bool) -> None:
        if fault.kind in (REFUSED, FATAL):
            self._breaker.succeeded(probe)
        else:
            self._breaker.failed(probe, fault.sentence, fault.retry_after)

    def _settled(self, answer: Answer, reservation: Reservation, most_prompt: int) -> Reply:
        """The reply of an answer, and its cost where it belongs. Where a server does not count, tokens are taken for as many as can be."""
        prompt = most_prompt if answer.prompt_tokens is None else answer.prompt_tokens
        completion = self.settings.max_tokens if answer.completion_tokens is None else answer.completion_tokens
        money = self._money(prompt, completion)
        reservation.settle(prompt + completion, money)
        self._refusals_before_any_answer = -1
        self.totals.answered += 1
        self.totals.prompt_tokens += prompt
        self.totals.completion_tokens += completion
        self.totals.money += money
        return Reply(answer.text, prompt, completion, False, answer.finish_reason, answer.refusal)

    def _give_up_on_refusals(self, fault: Fault) -> None:
        """A server that refuses call after call and has not answered one does not like how it is asked: no call will do better."""
        if self._refusals_before_any_answer >= 0:
            self._refusals_before_any_answer += 1
            if self._refusals_before_any_answer >= self.settings.breaker_failures:
                raise ApiFatal(f"{self._named()} refuses every request: {fault.sentence}. {THEN}")

    # --- what is sent ---------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Any]:
        sampling = {"temperature": self.settings.temperature, "top_p": self.settings.top_p}
        return {name: value for name, value in sampling.items() if value >= 0} | {"max_tokens": self.settings.max_tokens}

    def _body(self, messages: list[dict[str, str]], schema: dict[str, Any] | None, strictness: int) -> dict[str, Any]:
        parameters = self._parameters()
        parameters[self._length_field] = parameters.pop("max_tokens")
        body = {"model": self.settings.model, "messages": messages} | parameters
        if schema is None:
            return body
        if STRICTNESS[strictness] == "schema":
            return body | {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}}
        wanted = f"\n\nAnswer with JSON alone, one value that fits this JSON schema: {json.dumps(schema)}"
        last = messages[-1] | {"content": messages[-1]["content"] + wanted}
        body["messages"] = [*messages[:-1], last]
        return body | {"response_format": {"type": "json_object"}} if STRICTNESS[strictness] == "json_object" else body

    def _money(self, prompt_tokens: int, completion_tokens: int) -> float:
        settings = self.settings
        return (prompt_tokens * settings.price_per_million_prompt + completion_tokens * settings.price_per_million_completion) / 1e6

    def _named(self) -> str:
        return f"the model {self.settings.model} at {host(self._address)}"

    def _count_pauses(self, pauses: int, seconds: float) -> None:
        self.totals.pauses += pauses
        self.totals.seconds_paused += seconds

    # --- what belongs to an event loop ----------------------------------------------------------------------------

    async def _here(self) -> _InLoop:
        """What belongs to the running event loop, made at the first call in it."""
        loop = asyncio.get_running_loop()
        if self._in_loop is None or self._in_loop.loop is not loop:
            here = self._in_loop = _InLoop(loop, asyncio.Semaphore(self.settings.concurrency))
            if not self.offline:
                here.server = Server(self._address, self._key, connections=self.settings.concurrency, clock=self._clock)
                here.keeper = _closed_with_its_loop(here.server)
                await anext(here.keeper)  # does not give way to other tasks
        return self._in_loop


async def _closed_with_its_loop(server: Server) -> AsyncGenerator[None]:
    """A generator that has begun is closed when its event loop shuts down, as `asyncio.run` does, and closes the connections then."""
    try:
        yield
    finally:
        await server.close()


def _prompt_tokens(body: dict[str, Any]) -> tuple[int, int]:
    """(the most, the likely number of) tokens of the prompt that `body` makes."""
    messages = body["messages"]
    size = sum(len(message["content"].encode()) for message in messages) + len(json.dumps(body.get("response_format", "")))
    return size + TOKENS_A_PROMPT + TOKENS_A_MESSAGE * len(messages), size // BYTES_A_TOKEN + TOKENS_A_MESSAGE * len(messages)


def _sound(text: str) -> str:
    """`text` without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
