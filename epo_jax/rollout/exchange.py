"""What an actor that is a language model reads and writes in one episode: the published exchange.

Instruction and worked example, "OK", the task; then, every turn, the actor's own message, which *begins with the strategist's strategy*
and continues with the action:

    Thought: look in one of the desks for the pen.
    Action: go to desk 1

The published code appends the strategy to the actor's messages as the beginning of its answer and lets the model continue it. Where
the tokens are ours (actor_local.py) it is done so. Chat servers differ: some continue an assistant message that stands last, some need a flag
for it, some close it, some refuse it. So a server (actor_openai.py) gets the strategy at the end of the user's message, in <strategy> tags,
with the request to continue it by the action alone; in the *history* every turn stands in the published form, so the actor always
sees its past messages begin with their strategies. Users' and actor's messages alternate, which every chat template takes.

Where an environment's actions are JSON (`envs.ActionFormat`: SOTOPIA), a JSON object stands in the place of the "Action:" line. An answer that
holds none, or one that is no action, is told what is wrong with it and asked for once more; after that the action is the format's `nothing`.
Both are counted in the session's `counts`.

Strategies and observations are untrusted (epo_jax/untrusted.py): in a prompt they have no live markers or tags and a bounded length, and a
strategy is one line that begins with its label, so that no line of it can pass for an action.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from envs import ANYTHING, ActionFormat
from epo_jax.untrusted import one_line, plain

MAX_STRATEGY = 2_000  # characters of a strategy that the actor is shown
MAX_OBSERVATION = 16_000
MAX_ACTION = 300  # characters of an answer that count as its action
MAX_ANSWER = 20_000  # characters of an answer that are read
MAX_JSON_ACTION = 16_000
JSON_ATTEMPTS = 2  # an answer, and one that mends it
ASKED_AGAIN, UNREAD = "actions_asked_again", "actions_unread"  # what is counted of them

# Without a strategist (alone.py) the actor just acts, or thinks first (ReAct, Yao et al. 2023).
REQUESTS_ALONE = {
    "none": 'Now act. Write one line: "Action: ..."',
    "react": 'First think, then act. Write two lines: "Thought: ..." with your strategy in one or two sentences, then "Action: ..."',
}
REQUEST = 'Continue your message, which begins with this strategy, by the action that carries it out. Write one line: "Action: ..."'
_JSON_ALONE = "Answer with one JSON object and nothing else:"
JSON_REQUESTS_ALONE = {
    "none": f"Now act. {_JSON_ALONE} {{example}}",
    "react": f"First write your strategy, in at most {{words}} words, then act. {_JSON_ALONE} {{example}}",
}
JSON_REQUEST = f"Continue your message, which begins with this strategy, by the action that carries it out. {_JSON_ALONE} {{example}}"

_ACTION = re.compile(r"\baction[*_` ]{0,4}:[*_` ]{0,4}", re.IGNORECASE)
_LABEL = re.compile(r"(?:thought|strategy)\s*:", re.IGNORECASE)
_SEARCH = re.compile(r"search\[[^\[\]\n]*\S[^\[\]\n]*\]", re.IGNORECASE)
_WRAPPING = " \t`*\"'“”"


class Exchange:
    """The messages of one episode after its opening (prompts.actor_opening). turns: how many were answered.

    alone: the mode of an actor without a strategist, see REQUESTS_ALONE; None with one. form: of the actions, where they are JSON.
    """

    def __init__(self, opening: Sequence[dict[str, str]], *, alone: str | None = None, form: ActionFormat | None = None) -> None:
        self._messages = list(opening)
        self._alone, self._form = alone, form
        self.turns = 0

    def ask(self, observation: str, strategy: str) -> list[dict[str, str]]:
        """The messages of a request for the next action, for a server that answers whole messages only."""
        wanted = self._request() if self._alone else f"<strategy>\n{said(strategy, self._form)}\n</strategy>\n\n{self._request()}"
        request = f"{shown(observation)}\n\n{wanted}"
        return [*self._messages, {"role": "user", "content": request}]

    def answered(self, observation: str, strategy: str, action: str) -> None:
        """Keeps a turn in the published form, as later requests show it; `strategy` is the strategist's, or the actor's own ("": none)."""
        self._messages += [
            {"role": "user", "content": shown(observation)},
            {"role": "assistant", "content": self._answer(strategy, action)},
        ]
        self.turns += 1

    def _request(self) -> str:
        if self._form is None:
            return REQUESTS_ALONE[self._alone] if self._alone else REQUEST
        request = JSON_REQUESTS_ALONE[self._alone] if self._alone else JSON_REQUEST
        return request.replace("{words}", str(self._form.strategy_words)).replace("{example}", json_example(self._form, self._alone))

    def _answer(self, strategy: str, action: str) -> str:
        """What the actor is taken to have said in a turn."""
        begun = f"{said(strategy, self._form)}\n" if strategy or not self._alone else ""
        if self._form is None:
            return f"{begun}Action: {one_line(action, MAX_ACTION)}"
        told = one_line(action, MAX_JSON_ACTION)
        if self._alone:
            return _with_strategy(told, json.dumps(one_line(strategy, MAX_STRATEGY), ensure_ascii=False)) if strategy else told
        return f"{begun}{told}"


def shown(observation: str) -> str:
    """An observation as an actor's prompt holds it."""
    return plain(observation, MAX_OBSERVATION)


def said(strategy: str, form: ActionFormat | None = None) -> str:
    """A strategy as the beginning of the actor's message: one line with a label ("Thought:" where it has none, "Strategy:" before JSON)."""
    line = one_line(strategy, MAX_STRATEGY)
    return line if _LABEL.match(line) else f"{'Strategy' if form else 'Thought'}: {line}".strip()


def read_thought(answer: str) -> str:
    """What an answer says before its last "Action:", without a label; "" where there is nothing."""
    answer = plain(answer.rpartition("</think>")[2][:MAX_ANSWER], MAX_ANSWER)
    after = list(_ACTION.finditer(answer))
    return one_line(_LABEL.sub("", answer[: after[-1].start()], count=1), MAX_STRATEGY).strip(_WRAPPING) if after else ""


def read_action(answer: str, admissible: Sequence[str]) -> str:
    """The action that an answer names. The rule:

    1. What stands before a last "</think>" is skipped. Of what is left, and is longer than MAX_ANSWER, both ends are read.
    2. The action is the first line that is not blank after the last "Action:" (in any case; it may be bold), or of the whole answer where it has
       none; without white space, quotes and asterisks at its ends, and at most MAX_ACTION characters of it.
    3. If an admissible command is the same but for case, white space, a full stop, and what `shown` changes, it is that command.

    Anything else is passed on as it is: the environment says that it does nothing. Never raises on any text; no text gives "".
    """
    answer = answer.rpartition("</think>")[2]
    if len(answer) > MAX_ANSWER:
        answer = f"{answer[: MAX_ANSWER // 2]}\n{answer[-MAX_ANSWER // 2 :]}"
    answer = plain(answer, MAX_ANSWER + 1)
    after = [match.end() for match in _ACTION.finditer(answer)]
    lines = answer[after[-1] if after else 0 :].split("\n")
    line = next((line for line in lines if line.strip(_WRAPPING)), "").strip(_WRAPPING)[:MAX_ACTION].strip()
    for candidate in (line, line.rstrip(". ")):
        for command in admissible:
            if _key(command) == _key(candidate):
                return command
    return line


def answer_schema(form: ActionFormat, alone: str | None) -> dict[str, Any]:
    """The schema of an answer: the format's, with the actor's own strategy before it in the mode "react"."""
    if alone != "react":
        return form.schema
    properties = {"strategy": {"type": "string"}, **form.schema["properties"]}
    return form.schema | {"properties": properties, "required": ["strategy", *form.schema["required"]]}


def json_example(form: ActionFormat, alone: str | None) -> str:
    """How an answer looks."""
    return _with_strategy(form.example, '"…"') if alone == "react" else form.example


def read_json_action(form: ActionFormat, fields: dict[str, Any]) -> tuple[str, str]:
    """(the action, the strategy that the actor wrote for itself or "") of an answer that fits `answer_schema`. ValueError says what is wrong."""
    strategy = " ".join(_LABEL.sub("", one_line(fields.get("strategy", ""), MAX_STRATEGY), count=1).split()[: form.strategy_words])
    return form.read({name: value for name, value in fields.items() if name != "strategy"}), strategy


def _with_strategy(answer: str, strategy: str) -> str:
    """A JSON object with a strategy, itself JSON, as its first field."""
    return f'{{"strategy": {strategy}, {answer[1:]}'


def is_admissible(action: str, admissible: Sequence[str]) -> bool:
    """Whether an environment that lists these commands takes the action.

    A list with a search takes every query; an empty list, or one of `envs.ANYTHING`, takes anything.
    """
    if not admissible or action in admissible or ANYTHING in admissible:
        return True
    return any(command.startswith("search[") for command in admissible) and _SEARCH.fullmatch(action.strip()) is not None


def _key(command: str) -> str:
    return one_line(command, MAX_ACTION).casefold()
