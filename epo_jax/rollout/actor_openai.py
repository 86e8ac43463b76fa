"""The actor `openai`: any model behind an OpenAI-compatible API, in the published exchange (exchange.py)."""

from __future__ import annotations

from collections.abc import Sequence

import envs
from envs import ActionFormat
from epo_jax.api.client import ApiClient
from epo_jax.api.failures import NoUsableAnswer
from epo_jax.api.structured import ask
from epo_jax.rollout.exchange import ASKED_AGAIN, JSON_ATTEMPTS, UNREAD, Exchange, answer_schema, read_action, read_json_action, read_thought
from epo_jax.rollout.prompts import actor_opening


class OpenAIActor:
    """One request a turn, and one more where JSON is wanted and cannot be read. What fails, and how often it is tried, is the client's (epo_jax/api)."""

    needs_strategy = False

    def __init__(self, client: ApiClient, model: str, *, alone: str | None = None) -> None:
        self.name = f"openai:{model}"
        self._client, self._model, self._alone = client, model, alone

    @property
    def money(self) -> float:
        return self._client.totals.money

    def without_strategist(self, mode: str) -> OpenAIActor:
        """The same model, deciding by itself (alone.py)."""
        return OpenAIActor(self._client, self._model, alone=mode)

    def begin(self, environment: str, seed: int) -> OpenAIActorSession:
        form = envs.action_format(environment)
        exchange = Exchange(actor_opening(environment, "full"), alone=self._alone, form=form)
        if form is None:
            return OpenAIActorSession(self._client, exchange, seed, self._alone)
        return OpenAIJsonActorSession(self._client, exchange, seed, self._alone, form)


class OpenAIActorSession:
    """An episode in which an action is a line of text."""

    def __init__(self, client: ApiClient, exchange: Exchange, seed: int, alone: str | None) -> None:
        self._client, self._exchange, self._seed, self._alone = client, exchange, seed, alone
        self.counts: dict[str, int] = {}

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """Raises `ApiError` if the call failed for good. A refusal is an answer like any other, which the environment will not understand."""
        reply = await self._client.complete(self._exchange.ask(observation, strategy), salt=self._salt())
        answer = reply.text or reply.refusal or ""
        action = read_action(answer, admissible)
        self._exchange.answered(observation, read_thought(answer) if self._alone == "react" else strategy, action)
        return action

    def _salt(self) -> str:
        """With it, equal requests of two episodes are sampled apart, and those of a round that is played again are found in the cache."""
        return f"{self._seed}/{self._exchange.turns}"

    def close(self) -> None:
        pass


class OpenAIJsonActorSession(OpenAIActorSession):
    """An episode in which an action is JSON. The server is given its schema, where it takes one."""

    def __init__(self, client: ApiClient, exchange: Exchange, seed: int, alone: str | None, form: ActionFormat) -> None:
        super().__init__(client, exchange, seed, alone)
        self._form, self._schema = form, answer_schema(form, alone)
        self.counts = {ASKED_AGAIN: 0, UNREAD: 0}

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """The action as JSON; the format's `nothing` after a refusal or two answers that are none. Raises `ApiError` if the call failed for good."""
        messages = self._exchange.ask(observation, strategy)
        try:
            action, own = await ask(
                self._client,
                messages,
                self._schema,
                lambda fields: read_json_action(self._form, fields),
                JSON_ATTEMPTS,
                salt=self._salt(),
                on_again=self._asked_again,
            )
        except NoUsableAnswer:
            self.counts[UNREAD] += 1
            action, own = self._form.nothing, ""
        self._exchange.answered(observation, own if self._alone else strategy, action)
        return action

    def _asked_again(self) -> None:
        self.counts[ASKED_AGAIN] += 1
