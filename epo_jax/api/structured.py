"""An answer that is a JSON value of a given form: read from what a model wrote, checked, and asked again where it does not do."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import json_repair
import jsonschema

from epo_jax.api.client import ApiClient
from epo_jax.api.failures import NoUsableAnswer, one_line

Value = TypeVar("Value")
FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
LONGEST_SHOWN = 4000  # characters of a wrong answer that are shown to the model again
# Mending takes time that grows with the square of the length, and faster with brackets left open; valid JSON may be as long as it likes.
LONGEST_MENDED, MOST_BRACKETS_MENDED = 8000, 200


def parse(text: str, schema: dict[str, Any], *, mend: bool = True) -> dict[str, Any]:
    """The JSON object in `text` that fits `schema`: bare, in a code fence, within prose, or (`mend`) mended where it is nearly JSON.

    What stands before a last "</think>" is a model's thinking aloud, and is not read.

    Raises `ValueError` with a sentence that tells the model what to do better.
    """
    complaint = "it holds no JSON object"
    for candidate in _candidates(text, mend):
        if not isinstance(candidate, dict):
            continue
        try:
            jsonschema.validate(candidate, schema)
            return candidate
        except jsonschema.ValidationError as error:
            where = "".join(f"[{part!r}]" for part in error.absolute_path)
            complaint = f"the JSON does not fit{' at ' + where if where else ''}: {one_line(error.message)}"
    raise ValueError(complaint)


async def ask(
    client: ApiClient,
    messages: Sequence[dict[str, str]],
    schema: dict[str, Any],
    check: Callable[[dict[str, Any]], Value],
    attempts: int = 3,
    *,
    salt: str = "",
    on_again: Callable[[], None] = lambda: None,
) -> Value:
    """What `check` makes of the model's answer, a JSON object that fits `schema`.

    `check` returns the value, or raises `ValueError` that says what is wrong; then, as after an answer that is not such an object, the model
    is asked again, with its answer and the reason appended, `attempts` times in all. Every such question has its own place in the cache;
    `on_again` is called before each but the first.

    Raises `NoUsableAnswer` where no attempt does or the model refuses, and what `ApiClient.complete` raises.
    """
    conversation = list(messages)
    reason = ""
    for attempt in range(attempts):
        if attempt:
            client.totals.asked_again += 1
            on_again()
        reply = await client.complete(conversation, schema=schema, salt=salt)
        if reply.refusal is not None:
            raise NoUsableAnswer(f"{client.name} refused to answer: {one_line(reply.refusal)}")
        try:
            # An answer that was cut off is not mended: its last number may be half of one. A long one to be mended holds up no other call.
            cut_off = reply.finish_reason == "length"
            return check(await asyncio.to_thread(parse, reply.text, schema, mend=not cut_off))
        except ValueError as error:
            reason = str(error)
            if cut_off:
                reason += " (the answer was cut off, it must be shorter)"
        conversation += [
            {"role": "assistant", "content": reply.text[:LONGEST_SHOWN] or "(nothing)"},
            {"role": "user", "content": told_again(reason)},
        ]
    raise NoUsableAnswer(f"{client.name} gave no usable answer in {attempts} attempts (the last: {reason})")


def told_again(reason: str) -> str:
    """The message to a model whose answer cannot be used."""
    return f"This answer cannot be used: {reason}. Answer again, with the JSON object alone."


def _candidates(text: str, mend: bool) -> Iterator[Any]:
    """The values that `text` may mean, the most literal reading first."""
    answer = text.rpartition("</think>")[2]
    places = [answer, *FENCE.findall(answer)]
    if "{" in answer:
        from_first = answer[answer.index("{") :]
        places += [from_first[: from_first.rfind("}") + 1], from_first]
    for place in [text, *places]:
        try:
            yield json.loads(place)
        except (ValueError, RecursionError):
            continue
    for place in reversed(places) if mend else ():
        if "{" in place and len(place) <= LONGEST_MENDED and place.count("{") + place.count("[") <= MOST_BRACKETS_MENDED:
            try:
                yield json_repair.loads(place)
            except (ValueError, RecursionError):
                continue
