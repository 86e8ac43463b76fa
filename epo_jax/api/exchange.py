"""One try: one HTTP request to one server, and what came of it: an `Answer`, or a `Fault` of a known kind.

All that a server says is untrusted: it is bounded in size while it is read, checked in shape, and the key is blotted out of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import openai

from epo_jax.api.clock import Clock
from epo_jax.api.failures import FATAL, REFUSED, Fault, one_line
from epo_jax.api.limits import retry_after
from epo_jax.api.settings import host, is_loopback

LONGEST_BODY = 2 * 1024 * 1024  # bytes, after decompression; an answer of 100,000 tokens is under 1 MB
SHORTEST_SECRET = 8  # characters; a shorter key ("EMPTY", "none") is a placeholder, and blotting it out would garble answers
OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")  # headers that no longer hold once a body is read
SPENT_OUT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # a 429 that waiting does not help


class BodyTooLong(Exception):
    """More than `LONGEST_BODY`; reading stopped there."""


class BodyBroken(Exception):
    """The connection ended in the middle of an answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A well-formed answer. Token counts are None where the server gives none."""

    text: str
    refusal: str | None
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class BoundedHttp(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads every answer itself, errors too, and stops after `LONGEST_BODY` bytes."""

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        response = await super().send(request, stream=True, **options)
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LONGEST_BODY:
                    raise BodyTooLong
        except (BodyTooLong, asyncio.CancelledError):
            raise
        except Exception as error:
            raise BodyBroken(type(error).__name__) from error
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in OF_THE_WIRE]
        return type(response)(response.status_code, headers=headers, content=bytes(body), request=request)


class Server:
    """The connections to one server, within one event loop. Close it there."""

    def __init__(self, address: str, key: str, *, connections: int, clock: Clock) -> None:
        self.name = host(address)
        self._secret = key if len(key) >= SHORTEST_SECRET else None
        self._clock = clock
        http = BoundedHttp(
            timeout=None,  # the deadline of a try is on the whole of it, see `ask`
            follow_redirects=False,  # a key goes nowhere but where the user sent it
            trust_env=not is_loopback(address),  # a proxy does not reach this machine
            verify=address.startswith("https:"),  # loading certificates takes a while, and plain HTTP has none
            limits=_limits(connections),
        )
        self._openai = openai.AsyncOpenAI(api_key=key or "none", base_url=address, max_retries=0, timeout=None, http_client=http)
        self._create = self._openai.chat.completions.with_raw_response.create  # imported here, seconds long, and not within the first try

    async def ask(self, body: dict[str, Any], timeout_s: float) -> Answer:
        """POST chat/completions. Raises `Fault`, which carries nothing of the request, and so no key."""
        fault = None
        try:
            async with self._clock.timeout(timeout_s):
                response = await self._create(**body)
            return self._read(response.content)
        except Fault as error:
            fault = error
        except TimeoutError:
            fault = Fault("timeout", f"no answer within {timeout_s:g} s", charged=True)
        except BodyTooLong:
            fault = Fault("too_long", f"an answer of more than {LONGEST_BODY // 2**20} MiB", charged=True)
        except BodyBroken:
            fault = Fault("half_body", "the connection ended in the middle of the answer", charged=True)
        except openai.APIStatusError as error:
            fault = self._told_by_status(error)
        except openai.APIConnectionError as error:
            causes = _chain(error)
            fault = Fault("connection", f"connection failed ({causes[-1]})", charged="ConnectError" not in causes)
        fault.__traceback__ = fault.__context__ = fault.__cause__ = None
        raise fault

    async def close(self) -> None:
        await self._openai.close()

    def clean(self, text: str) -> str:
        """`text` without the key and without what UTF-8 cannot hold."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._secret, "[key]") if self._secret else text

    def _read(self, content: bytes) -> Answer:
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            raise Fault("invalid_json", "an answer that is not JSON", charged=True) from None
        if not isinstance(data, dict) or not isinstance(data.get("choices"), list):
            told = data.get("error") if isinstance(data, dict) else None  # some proxies report errors with status 200
            raise Fault("wrong_shape", "an answer without choices" + (f": {one_line(self.clean(str(told)))}" if told else ""), charged=True)
        if not data["choices"]:
            raise Fault("no_choice", "an answer with an empty list of choices", charged=True)
        choice = data["choices"][0]
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise Fault("wrong_shape", "a choice without a message", charged=True)
        text, refusal, finish_reason = _text(message.get("content")), message.get("refusal"), choice.get("finish_reason")
        refusal = refusal if isinstance(refusal, str) and refusal else None
        finish_reason = finish_reason if isinstance(finish_reason, str) else ""
        if text is None and refusal is None and finish_reason not in ("length", "content_filter"):
            raise Fault("wrong_shape", "a message without text", charged=True)
        usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
        return Answer(
            text=self.clean(text or ""),
            refusal=None if refusal is None else self.clean(refusal),
            finish_reason=self.clean(finish_reason)[:100],
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )

    def _told_by_status(self, error: openai.APIStatusError) -> Fault:
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        said = body.get("message") if isinstance(body.get("message"), str) else str(error.body or "")
        code = " ".join(str(body.get(name) or "") for name in ("code", "type", "param"))
        sentence = one_line(f"HTTP {status} {self.clean(said)}")
        wait = retry_after(error.response.headers, self._clock)
        if status in (401, 402, 403, 404, 405, 410) or status < 400 or (status == 429 and any(word in code for word in SPENT_OUT)):
            return Fault(FATAL, sentence)
        if status == 408:
            return Fault("timeout", sentence, retry_after=wait)
        if status == 409:
            return Fault("conflict", sentence, retry_after=wait)
        if status == 429:
            return Fault("rate_limited", sentence, retry_after=wait)
        if status >= 500:
            return Fault("server_error", sentence, retry_after=wait)
        return Fault(REFUSED, sentence, about=f"{code} {said}".lower())


def _text(content: Any) -> str | None:
    """The text of a message: a string, or the text parts of a list; None where there is none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "".join(parts) if parts else None
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else None


def _limits(connections: int) -> Any:
    """httpx's own class of limits, in whichever version of httpx openai brings."""
    return type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=connections, max_keepalive_connections=connections)


def _chain(error: BaseException) -> list[str]:
    """The classes of an exception and its causes, outermost first. Their texts may hold the request, so those stay untold."""
    names = [type(error).__name__]
    while error.__cause__ is not None:
        error = error.__cause__
        names.append(type(error).__name__)
    return names
