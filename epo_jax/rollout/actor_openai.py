"""The actor `openai`: any model behind an OpenAI-compatible API, in the published exchange (exchange.py)."""

from __future__ import annotations

from collections.abc import Sequence

from epo_jax.api.client import ApiClient
from epo_jax.rollout.exchange import Exchange, read_action
from epo_jax.rollout.prompts import actor_opening


class OpenAIActor:
    """One request a turn. What fails, and how often it is tried, is the client's (epo_jax/api)."""

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
        exchange = Exchange(actor_opening(environment, "full"), alone=self._alone)
        return OpenAIActorSession(self._client, exchange, seed, thinking=self._alone == "react")


class OpenAIActorSession:
    def __init__(self, client: ApiClient, exchange: Exchange, seed: int, *, thinking: bool) -> None:
        self._client, self._exchange, self._seed, self._thinking = client, exchange, seed, thinking

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        """Raises `ApiError` if the call failed for good. A refusal is an answer like any other, which the environment will not understand."""
        # With the salt, equal requests of two episodes are sampled apart, and those of a round that is played again are found in the cache.
        salt = f"{self._seed}/{self._exchange.turns}"
        reply = await self._client.complete(self._exchange.ask(observation, strategy), salt=salt)
        answer = reply.text or reply.refusal or ""
        action = read_action(answer, admissible)
        self._exchange.answered(observation, read_thought(answer) if self._thinking else strategy, action)
        return action

    def close(self) -> None:
        pass
