"""The actor `local`: a frozen model in this process, in the published exchange (exchange.py), all episodes batched by an engine of its own.

The tokens are ours, so it is done as published: the strategy begins the actor's message, and the model continues it after "Action:", or
after the first field's name where an action is JSON. An episode's conversation only grows, so the engine reads every token once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import envs
from envs import ActionFormat
from epo_jax.api.structured import parse, told_again
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout.exchange import ASKED_AGAIN, JSON_ATTEMPTS, UNREAD, answer_schema, read_action, read_json_action, said, shown
from epo_jax.rollout.prompts import actor_opening


class LocalActor:
    """`engine` holds the actor's weights, `conversation` is its tokenizer's; `prompt` is a style of `prompts.actor_opening`."""

    needs_strategy = False
    money = 0.0

    def __init__(
        self, engine: Engine, conversation: ConversationFormat, sampling: Sampling, *, model: str, prompt: str, alone: str | None = None
    ) -> None:
        self.name = f"local:{model}"
        self._engine, self._conversation, self._sampling = engine, conversation, sampling
        self._model, self._prompt, self._alone = model, prompt, alone

    def without_strategist(self, mode: str) -> LocalActor:
        """The same model, deciding by itself (alone.py)."""
        return LocalActor(self._engine, self._conversation, self._sampling, model=self._model, prompt=self._prompt, alone=mode)

    def begin(self, environment: str, seed: int) -> LocalActorSession:
        opening, form = actor_opening(environment, self._prompt), envs.action_format(environment)
        if form is None:
            return LocalActorSession(self._engine, self._conversation, self._sampling, opening, seed, self._alone)
        return LocalJsonActorSession(self._engine, self._conversation, self._sampling, opening, seed, self._alone, form)

    def shutdown(self) -> None:
        self._engine.shutdown()


class LocalActorSession:
    """An episode in which an action is a line of text."""

    def __init__(
        self,
        engine: Engine,
        conversation: ConversationFormat,
        sampling: Sampling,
        opening: Sequence[dict[str, str]],
        seed: int,
        alone: str | None,
    ) -> None:
        """alone: the mode of an actor without a strategist (alone.py); None with one."""
        self._engine, self._conversation, self._sampling, self._opening, self._alone = engine, conversation, sampling, opening, alone
        self._session = engine.open(seed)
        self._said: list[int] | None = None  # the last answer as it was sampled
        self.counts: dict[str, int] = {}

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """Raises `ContextFull` when the episode has outgrown the engine's max_length."""
        begins = {None: f"{said(strategy)}\nAction:", "none": "Action:", "react": "Thought:"}[self._alone]
        return read_action(await self._continue(shown(observation), begins), admissible)

    async def _continue(self, told: str, begins: str) -> str:
        """What the model says after `told`, a message of the user, where its own message begins with `begins`."""
        if self._said is None:
            tokens = self._conversation.start([*self._opening, {"role": "user", "content": told}])
        else:
            tokens = self._conversation.reply_and_continue(self._said, told)
        sampled = await self._engine.generate(self._session, tokens + self._conversation.begin_reply(begins), self._sampling)
        self._said = sampled.tokens
        return self._conversation.text(sampled.tokens)

    def close(self) -> None:
        self._engine.close(self._session)


class LocalJsonActorSession(LocalActorSession):
    """An episode in which an action is JSON, whose beginning is given, too."""

    def __init__(
        self,
        engine: Engine,
        conversation: ConversationFormat,
        sampling: Sampling,
        opening: Sequence[dict[str, str]],
        seed: int,
        alone: str | None,
        form: ActionFormat,
    ) -> None:
        """As `LocalActorSession`. form: of the actions."""
        super().__init__(engine, conversation, sampling, opening, seed, alone)
        self._form, self._schema = form, answer_schema(form, alone)
        self._begun = f'{{"{next(iter(self._schema["properties"]))}":'
        self.counts = {ASKED_AGAIN: 0, UNREAD: 0}

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """The action as JSON; the format's `nothing` after two answers that are none. Raises `ContextFull` as the other."""
        begins = self._begun if self._alone else f"{said(strategy, self._form)}\n{self._begun}"
        told = shown(observation)
        for attempt in range(JSON_ATTEMPTS):
            self.counts[ASKED_AGAIN] += attempt > 0
            answer = self._begun + await self._continue(told, begins)
            try:
                fields = await asyncio.to_thread(parse, answer, self._schema)  # a long answer to be mended holds up no other episode
                return read_json_action(self._form, fields)[0]
            except ValueError as error:
                told = shown(told_again(str(error)))
        self.counts[UNREAD] += 1
        return self._form.nothing
