"""The actor `local`: a frozen model in this process, in the published exchange (exchange.py), all episodes batched by an engine of its own.

The tokens are ours, so it is done as published: the strategy begins the actor's message, and the model continues it after "Action:". An
episode's conversation only grows, so the engine reads every token once.
"""

from __future__ import annotations

from collections.abc import Sequence

from epo_jax.generate.engine import Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout.exchange import read_action, said, shown
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
        begins = {None: None, "none": "Action:", "react": "Thought:"}[self._alone]
        opening = actor_opening(environment, self._prompt)
        return LocalActorSession(self._engine, self._conversation, self._sampling, opening, seed, begins)

    def shutdown(self) -> None:
        self._engine.shutdown()


class LocalActorSession:
    def __init__(
        self,
        engine: Engine,
        conversation: ConversationFormat,
        sampling: Sampling,
        opening: Sequence[dict[str, str]],
        seed: int,
        begins: str | None,
    ) -> None:
        """begins: how the actor's message begins without a strategist; None: with the strategy."""
        self._engine, self._conversation, self._sampling, self._opening, self._begins = engine, conversation, sampling, opening, begins
        self._session = engine.open(seed)
        self._said: list[int] | None = None  # the last answer as it was sampled

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """Raises `ContextFull` when the episode has outgrown the engine's max_length."""
        if self._said is None:
            tokens = self._conversation.start([*self._opening, {"role": "user", "content": shown(observation)}])
        else:
            tokens = self._conversation.reply_and_continue(self._said, shown(observation))
        tokens = tokens + self._conversation.begin_reply(self._begins or f"{said(strategy)}\nAction:")
        sampled = await self._engine.generate(self._session, tokens, self._sampling)
        self._said = sampled.tokens
        return read_action(self._conversation.text(sampled.tokens), admissible)

    def close(self) -> None:
        self._engine.close(self._session)
