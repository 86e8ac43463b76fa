"""What a client may ask of `/v1/chat/completions`, checked: a body becomes a `ChatRequest` or an `APIError` with one sentence.

Only what is done as OpenAI's API describes it is accepted. A parameter that would be ignored is refused, unless it has the value that asks
for nothing (`"frequency_penalty": 0`, `null`). `top_k` is an extension (`extra_body={"top_k": ...}` in the openai client).
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from typing import Any

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 200  # characters
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PARAMETERS = frozenset(
    ("messages", "model", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "stream", "stream_options")
    + ("logprobs", "top_logprobs", "response_format", "user")
)  # fmt: skip
# Parameters that are not supported, with the values that ask for what is done anyway (null and absence are always fine).
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False), "store": (False,), "metadata": ({},), "service_tier": ("auto", "default"), "modalities": (["text"],),
}  # fmt: skip


class APIError(Exception):
    """A refusal in OpenAI's shape: status, one sentence, the parameter it is about, and a code that programs can read."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A checked request. messages: roles system, user, assistant, the last one the user's. max_tokens: None where the request leaves it open."""

    messages: list[dict[str, str]]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False


def parse(body: bytes, *, model: str, max_messages: int) -> ChatRequest:
    """The request in a body. `model` is the name that is served. Raises `APIError`."""
    fields = _read_json(body)
    for name in fields:
        if name not in PARAMETERS and not any(_same(fields[name], value) for value in NEUTRAL.get(name, ())):
            what = f"{name} with this value" if name in NEUTRAL else f"the parameter {_short(name)}"
            raise APIError(400, f"{what} is not supported here: leave it out.", param=_short(name), code="unsupported_parameter")
    asked = _field(fields, "model", str, model)
    if asked != model:
        raise APIError(404, f"model is {_short(asked)} and this server has {model!r}: ask for that one.", param="model", code="model_not_found")
    _check_plain_text(fields)
    stream = _field(fields, "stream", bool, False)
    top_logprobs = _number(fields, "top_logprobs", int, 0, 0, 20)
    if top_logprobs:
        raise APIError(
            400, "top_logprobs is not available here: leave it out; logprobs gives the log-probability of each token that was sampled.",
            param="top_logprobs", code="unsupported_parameter",
        )  # fmt: skip
    _field(fields, "user", str, "")
    return ChatRequest(
        messages=_messages(fields, max_messages),
        temperature=_number(fields, "temperature", float, 1.0, 0, 2),
        top_p=_top_p(fields),
        top_k=_number(fields, "top_k", int, 0, 0, 2**31 - 1),
        max_tokens=_max_tokens(fields),
        stop=_stop(fields),
        seed=_number(fields, "seed", int, None, -(2**63), 2**63 - 1),
        n=_number(fields, "n", int, 1, 1, MAX_CHOICES),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        logprobs=_field(fields, "logprobs", bool, False),
    )


# --- the fields -------------------------------------------------------------------------------------------------------------------------------


def _read_json(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0][:120]
        raise APIError(400, f"the body is not valid JSON ({reason}): send one JSON object.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise APIError(400, f"the body is {_kind(fields)}: send one JSON object.", code="invalid_json")
    return {name: value for name, value in fields.items() if value is not None}


def _messages(fields: dict[str, Any], max_messages: int) -> list[dict[str, str]]:
    messages = _field(fields, "messages", list, None)
    if not messages:
        raise _wrong("messages", "messages is missing or empty: give a list of messages, the last one the user's.")
    if len(messages) > max_messages:
        message = f"there are {len(messages)} messages and the context holds {max_messages} tokens: send fewer."
        raise APIError(400, message, param="messages", code="context_length_exceeded")
    checked = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if checked[-1]["role"] != "user":
        raise _wrong("messages", f"the last message is the {checked[-1]['role']}'s: end with the user's message, which the strategist answers.")
    rest = [message["role"] for message in checked if message["role"] != "system"]
    if rest[0] != "user":
        raise _wrong("messages", "the first message after the system's is the assistant's: begin with the user's.")
    return checked


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong(where, f"{where} is {_kind(message)}: give an object with role and content.")
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, [], {}):
            raise APIError(400, f"{where} has {_short(name)}, which is not supported: leave it out.", param=where, code="unsupported_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{where}.role", f"{where}.role is {_short(role)}: give one of {', '.join(ROLES)}.")
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = []
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise _wrong(where, f'{where} has a part that is not text: give a string, or parts like {{"type": "text", "text": "..."}}.')
            parts.append(part["text"])
        return "".join(parts)
    raise _wrong(where, f"{where} is {_kind(content)}: give a string.")


def _top_p(fields: dict[str, Any]) -> float:
    top_p = _number(fields, "top_p", float, 1.0, 0, 1)
    if top_p == 0:
        raise _wrong("top_p", "top_p is 0: give a number above 0 and at most 1, and temperature 0 for the most probable token.")
    return top_p


def _max_tokens(fields: dict[str, Any]) -> int | None:
    old, new = (_number(fields, name, int, None, 1, 2**31 - 1) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise _wrong("max_tokens", f"max_tokens is {old} and max_completion_tokens {new}: give one of them.")
    return old if new is None else new


def _stop(fields: dict[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise _wrong("stop", "stop must be a string or a list of strings.")
    if len(stops) > MAX_STOPS or any(not 1 <= len(one) <= MAX_STOP_LENGTH for one in stops):
        raise _wrong("stop", f"stop may hold up to {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters.")
    return tuple(stops)


def _include_usage(fields: dict[str, Any], stream: bool) -> bool:
    options = _field(fields, "stream_options", dict, None)
    if options is None:
        return False
    if not stream:
        raise _wrong("stream_options", "stream_options needs stream: true.")
    for name in options:
        if name != "include_usage":
            message = f"stream_options has {_short(name)}, which is not supported: leave it out."
            raise APIError(400, message, param="stream_options", code="unsupported_parameter")
    return _field({k: v for k, v in options.items() if v is not None}, "include_usage", bool, False)


def _check_plain_text(fields: dict[str, Any]) -> None:
    wanted = _field(fields, "response_format", dict, {"type": "text"})
    if wanted != {"type": "text"}:
        raise APIError(
            400, 'response_format must be {"type": "text"}: this server does not constrain what is sampled; ask for JSON in the prompt and parse it.',
            param="response_format", code="unsupported_parameter",
        )  # fmt: skip


# --- checks -----------------------------------------------------------------------------------------------------------------------------------

_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object", type(None): "null"}


def _field(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise _wrong(name, f"{name} is {_kind(value)}: it must be {_NAMES[kind]}.")
    return value


def _number(fields: dict[str, Any], name: str, kind: type, default: Any, lowest: float, highest: float) -> Any:
    if name not in fields:
        return default
    value = fields[name]
    right = not isinstance(value, bool) and isinstance(value, (int, float) if kind is float else int)
    if not right:
        raise _wrong(name, f"{name} is {_kind(value)}: it must be {_NAMES[kind]}.")
    if not lowest <= value <= highest or not math.isfinite(value):
        raise _wrong(name, f"{name} is {_short(value)}: it must lie between {lowest} and {highest}.")
    return kind(value)


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and (isinstance(value, bool) == isinstance(neutral, bool))


def _wrong(param: str, message: str) -> APIError:
    return APIError(400, message, param=param, code="invalid_value")


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), "of an unknown type")


def _short(value: Any) -> str:
    """A stranger's value for a sentence: quoted, without control characters, and never long."""
    return reprlib.repr(value if isinstance(value, (str, int, float, type(None))) else _kind(value))
