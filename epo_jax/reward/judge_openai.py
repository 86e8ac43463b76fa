"""Judges that are models behind an API: `openai`, the published scoring, and `graded`.

Either reads a whole finished episode in one request: the task, every strategy and what came of it as JSON, with an index a message and the final
score. An answer that does not name strategist turns by their indexes, or leaves one out where all are asked for, is told what is wrong with it and
asked again (api/structured.py); it is never mended by dropping what does not fit. An answer that stays wrong raises: the trajectory is masked.

Strategies, actions and observations are untrusted: they stand inside JSON strings, without live markers and of a bounded length
(epo_jax/untrusted.py). Reasons are kept in `trajectory.extra["judge"]`.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from epo_jax.api.client import ApiClient
from epo_jax.api.structured import ask
from epo_jax.trajectory import Trajectory
from epo_jax.untrusted import plain

MAX_MESSAGE = 8_000  # characters of one message that the judge is shown
MAX_REASON = 2_000  # characters of a reason that are kept
GRADES = range(11)
MIDDLE_GRADE = 5

_PICKS = {
    "type": "object",
    "properties": {"indexes": {"type": "array", "items": {"type": "integer"}}, "reasoning": {"type": "string"}},
    "required": ["indexes", "reasoning"],
    "additionalProperties": False,
}
_GRADE = {
    "type": "object",
    "properties": {"index": {"type": "integer"}, "grade": {"type": "integer"}, "reason": {"type": "string"}},
    "required": ["index", "grade", "reason"],
    "additionalProperties": False,
}
_GRADED = {
    "type": "object",
    "properties": {"grades": {"type": "array", "items": _GRADE}},
    "required": ["grades"],
    "additionalProperties": False,
}


class OpenAIJudge:
    """The published judge: it names the turns that were critically important.

    A picked turn's process reward is 1, every other's 0: `epo` reads that as picked or not, `reinforce` adds it to the return.
    """

    def __init__(self, client: ApiClient, model: str, *, attempts: int = 3, salt: str = "") -> None:
        """attempts: answers that are asked for until one is usable. salt: another one asks anew what the client's cache holds."""
        self.name = f"openai:{model}"
        self._client, self._attempts, self._salt = client, attempts, salt

    async def score(self, trajectory: Trajectory) -> None:
        """Sets every turn's `process_reward` to 0 or 1 and `extra["judge"]` to {"reasoning"}. Raises `ApiError` if there is no usable answer."""
        known = strategist_indexes(trajectory)
        if not known:
            return

        def check(value: dict[str, Any]) -> tuple[set[int], str]:
            for pick in value["indexes"]:
                if pick not in known:
                    raise ValueError(f'{pick} in "indexes" is not the index of a strategist\'s message: choose from {known}, or give an empty list')
            return set(value["indexes"]), value["reasoning"]

        picked, reasoning = await ask(self._client, _request("picks.txt", trajectory), _PICKS, check, self._attempts, salt=self._salt)
        for turn, index in zip(trajectory.turns, known, strict=True):
            turn.process_reward = 1.0 if index in picked else 0.0
        trajectory.extra["judge"] = {"reasoning": plain(reasoning, MAX_REASON)}


class GradedJudge:
    """Grades every turn from 0 to 10, with a reason.

    A turn's process reward is (grade - 5) / 5, in [-1, 1]: above 5 it counts as picked for `epo`, and `reinforce` learns from the value, against
    a turn that did harm as well.
    """

    def __init__(self, client: ApiClient, model: str, *, attempts: int = 3, salt: str = "") -> None:
        """As `OpenAIJudge`."""
        self.name = f"graded:{model}"
        self._client, self._attempts, self._salt = client, attempts, salt

    async def score(self, trajectory: Trajectory) -> None:
        """Sets every turn's `process_reward`, and `extra["judge"]` to {"grades", "reasons"}, one a turn.

        Raises `ApiError` if there is no usable answer.
        """
        known = strategist_indexes(trajectory)
        if not known:
            return

        def check(value: dict[str, Any]) -> list[dict[str, Any]]:
            graded = [entry["index"] for entry in value["grades"]]
            if sorted(graded) != known:
                wrong = sorted(set(graded) ^ set(known)) or sorted({index for index in graded if graded.count(index) > 1})
                raise ValueError(f'"grades" must have every index of {known} exactly once and no other; look at {wrong[:10]}')
            for entry in value["grades"]:
                if entry["grade"] not in GRADES:
                    raise ValueError(f"the grade of index {entry['index']} is {entry['grade']}: give a whole number from 0 to 10")
            return sorted(value["grades"], key=lambda entry: entry["index"])

        grades = await ask(self._client, _request("graded.txt", trajectory), _GRADED, check, self._attempts, salt=self._salt)
        for turn, entry in zip(trajectory.turns, grades, strict=True):
            turn.process_reward = (entry["grade"] - MIDDLE_GRADE) / MIDDLE_GRADE
        trajectory.extra["judge"] = {
            "grades": [int(entry["grade"]) for entry in grades],
            "reasons": [plain(entry["reason"], MAX_REASON) for entry in grades],
        }


def strategist_indexes(trajectory: Trajectory) -> list[int]:
    """The indexes of the strategist's messages: 0 is the task, and each turn is a strategy and what came of it."""
    return [1 + 2 * turn for turn in range(len(trajectory.turns))]


def episode_as_json(trajectory: Trajectory) -> str:
    """What a judge reads of an episode."""
    messages = [{"index": 0, "from": "environment", "value": plain(trajectory.first_observation, MAX_MESSAGE)}]
    for index, turn in zip(strategist_indexes(trajectory), trajectory.turns, strict=True):
        after = f"Agent1's {turn.action}\n{turn.observation}"
        messages += [
            {"index": index, "from": "strategist", "value": plain(turn.strategy, MAX_MESSAGE)},
            {"index": index + 1, "from": "environment", "value": plain(after, MAX_MESSAGE)},
        ]
    record = {"messages": messages, "strategist_indexes": strategist_indexes(trajectory), "final_score": round(trajectory.outcome, 4)}
    return json.dumps(record, ensure_ascii=False)


def instruction(prompt: str) -> str:
    """What a judge is told before the episode: the file of that name in reward/prompts."""
    return (importlib.resources.files("epo_jax.reward") / "prompts" / prompt).read_text().strip()


def _request(prompt: str, trajectory: Trajectory) -> list[dict[str, str]]:
    """One message of the user: a chat template may have no system role."""
    return [{"role": "user", "content": f"{instruction(prompt)}\n\n{episode_as_json(trajectory)}"}]
