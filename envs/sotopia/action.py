"""What a seat can do in its turn: one of five actions, its JSON form, and how it is told.

An action comes from a model, so its JSON form is read strictly and its argument is made one line of printable text: nothing that is said
can look like another line of the conversation.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from envs import ActionFormat

NONE, SPEAK, GESTURE, ACT, LEAVE = ACTION_TYPES = ("none", "speak", "non-verbal communication", "action", "leave")
MAX_CHARACTERS = 2_000  # of an argument; what is beyond is cut
_MAX_JSON = 50_000  # characters of an answer that are read

# The schema of an answer, for servers that can hold a model to one.
JSON_SCHEMA = {
    "type": "object",
    "properties": {"action_type": {"type": "string", "enum": list(ACTION_TYPES)}, "argument": {"type": "string"}},
    "required": ["action_type", "argument"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True)
class Action:
    """One move. argument: the words said, or the gesture or deed; empty for `none` and `leave`. Raises ValueError for anything else."""

    action_type: str
    argument: str = ""

    def __post_init__(self) -> None:
        if self.action_type not in ACTION_TYPES:
            raise ValueError(f"action_type is {_short(self.action_type)}: use one of {', '.join(ACTION_TYPES)}")
        if not isinstance(self.argument, str):
            raise ValueError(f"argument is {_short(self.argument)}: it must be a string")
        argument = "" if self.action_type in (NONE, LEAVE) else one_line(self.argument)
        if not argument and self.action_type not in (NONE, LEAVE):
            raise ValueError(f"a {self.action_type} action needs words in its argument")
        object.__setattr__(self, "argument", argument)

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action in a model's answer: its first JSON object. ValueError says in a sentence what is wrong with it.

        What stands around the object (a code fence, a preamble) is skipped. Who asks may ask again once, with that sentence; then it is `none`.
        """
        start = text.find("{", 0, _MAX_JSON)
        if start < 0:
            raise ValueError('the answer holds no JSON object: answer with {"action_type": "…", "argument": "…"} alone')
        try:
            fields, _ = json.JSONDecoder(strict=False).raw_decode(text[start:_MAX_JSON])
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            raise ValueError(f"the answer's JSON cannot be read ({type(error).__name__}: {error})") from None
        return cls.of(fields)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Action:
        """The action in an answer's fields, of which others than its own are ignored. ValueError as in `parse`."""
        if "action_type" not in fields:
            raise ValueError('the answer\'s JSON has no "action_type"')
        kind, argument = fields["action_type"], fields.get("argument")
        return cls(kind.strip().lower() if isinstance(kind, str) else kind, "" if argument is None else argument)

    def to_json(self) -> str:
        return json.dumps({"action_type": self.action_type, "argument": self.argument}, ensure_ascii=False)

    def told(self, name: str) -> str:
        """The line that both seats (the one that acted, too) and the evaluator read."""
        if self.action_type == NONE:
            return f"{name} did nothing"
        if self.action_type == LEAVE:
            return f"{name} left the conversation"
        if self.action_type == SPEAK:
            return f'{name} said: "{self.argument}"'
        return f"{name} [{self.action_type}] {self.argument}"


def one_line(text: str) -> str:
    """The text as one line of printable characters, cut at MAX_CHARACTERS."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * MAX_CHARACTERS])
    return " ".join(printable.split())[:MAX_CHARACTERS].rstrip()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


FORMAT = ActionFormat(
    schema=JSON_SCHEMA,
    example='{"action_type": "…", "argument": "…"}',
    read=lambda fields: Action.of(fields).to_json(),
    nothing=Action(NONE).to_json(),
    strategy_words=10,
)
