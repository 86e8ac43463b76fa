"""The evaluator `openai`: a model behind an API scores both seats of a conversation in one request, at temperature 0 as published.

The published evaluator asks for a pair of reasoning and integer for each dimension. Here a pair is an object, `{"reasoning": …, "score": …}`, since
servers that hold a model to a schema know no lists of mixed types; the reasoning comes first, so that the score follows from it. An answer that
cannot be read, or with a score outside its range, is told what is wrong with it and asked again (api/structured.py); it is never clipped. One that
stays wrong raises, and the caller masks both seats.

What was said is untrusted: every line of the conversation stands in a JSON string of its own, without live markers and of a bounded length
(epo_jax/untrusted.py), so that no turn can pass for another, or for the end of the conversation.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from epo_jax.api.client import ApiClient
from epo_jax.api.structured import ask
from epo_jax.reward.evaluator import DIMENSIONS, Scores, check_score
from epo_jax.untrusted import one_line, plain

SEATS = ("agent_1", "agent_2")
MAX_LINE = 8_000  # characters of a line of the conversation that the evaluator is shown
MAX_REASON = 2_000  # characters of a reasoning that are kept


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_PAIR = _object({"reasoning": {"type": "string"}, "score": {"type": "integer"}})
SCHEMA = _object({seat: _object({dimension: _PAIR for dimension in DIMENSIONS}) for seat in SEATS})


class OpenAIEvaluator:
    """One request a conversation, and one more for each answer that is of no use."""

    def __init__(self, client: ApiClient, model: str, *, attempts: int = 3, salt: str = "") -> None:
        """attempts: answers that are asked for until one is usable. salt: another one asks anew what the client's cache holds."""
        self.name = f"openai:{model}"
        self._client, self._attempts, self._salt = client, attempts, salt

    @property
    def money(self) -> float:
        return self._client.totals.money

    async def score(self, transcript: str, names: tuple[str, str]) -> tuple[Scores, Scores]:
        """See `Evaluator`. Raises `ApiError` if there is no usable answer."""
        return await ask(self._client, request(transcript, names), SCHEMA, read, self._attempts, salt=self._salt)


def read(value: dict[str, Any]) -> tuple[Scores, Scores]:
    """The scores in an answer that fits SCHEMA; `ValueError` names every score that is out of its range."""
    wrong = []
    for seat in SEATS:
        for dimension, pair in value[seat].items():
            try:
                check_score(dimension, _whole(pair["score"]))
            except ValueError as error:
                wrong.append(f"{seat}'s {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(
        Scores(
            {dimension: _whole(pair["score"]) for dimension, pair in value[seat].items()},
            {dimension: plain(pair["reasoning"], MAX_REASON) for dimension, pair in value[seat].items()},
        )
        for seat in SEATS
    )


def _whole(score: int | float) -> int:
    """7.0 is a whole number to a JSON schema."""
    return int(score)


def request(transcript: str, names: tuple[str, str]) -> list[dict[str, str]]:
    """One message of the user: a chat template may have no system role."""
    instruction = (importlib.resources.files("envs.sotopia") / "prompts" / "evaluator.txt").read_text().strip()
    return [{"role": "user", "content": f"{instruction}\n\n{conversation_as_json(transcript, names)}"}]


def conversation_as_json(transcript: str, names: tuple[str, str]) -> str:
    """What the evaluator reads of a conversation, on one line."""
    lines = [plain(line, MAX_LINE) for line in transcript.split("\n")]
    record = {"participants": {seat: one_line(name, MAX_LINE) for seat, name in zip(SEATS, names, strict=True)}, "transcript": lines}
    return json.dumps(record, ensure_ascii=False)
