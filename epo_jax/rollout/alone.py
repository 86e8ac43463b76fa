"""Episodes without a strategist, to compare with: the actor acts alone, or writes a strategy of its own before it acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import envs
from epo_jax.errors import UserError
from epo_jax.generate.engine import Sampled, Sampling
from epo_jax.rollout.actors import Actor

MODES = ("none", "react")


class SelfReliantActor(Actor, Protocol):
    """An actor that can decide by itself: everywhere if its `needs_strategy` is False, in conversations otherwise."""

    def without_strategist(self, mode: str) -> Actor:
        """The same actor, which gets no strategies: mode "none", it just acts; "react", it writes one of its own before each action."""
        ...


def check_alone(name: str, needs_strategy: bool, mode: str, environments: Iterable[str]) -> None:
    """Raises `UserError` for an actor that can do nothing by itself in one of these environments.

    In a conversation everybody can: a party that gets no words moves as it sees fit (envs/sotopia/party.py).
    """
    helpless = sorted(set(environments) - set(envs.TWO_SEATS))
    if needs_strategy and helpless:
        raise UserError(
            f"{mode!r} lets the actor play alone, and in {helpless[0]} the actor {name} only carries out a strategist's words: "
            "give an actor that is a language model, or a strategist (vanilla or trained)."
        )


class Silence:
    """Stands where a strategist's engine and conversation stand in play.Player: reads nothing and says "", in no tokens."""

    weights_version = "none"
    stats = {"prompt_tokens": 0, "prefill_tokens": 0, "decode_tokens": 0, "compilations": 0}

    def open(self, seed: int) -> None:
        return None

    async def generate(self, session: None, new_tokens: Sequence[int], sampling: Sampling) -> Sampled:
        return Sampled(tokens=[], logprobs=[], stop_reason="stop")

    def close(self, session: None) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def start(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return []

    def reply_and_continue(self, sampled: Sequence[int], text: str) -> list[int]:
        return []

    def text(self, tokens: Sequence[int]) -> str:
        return ""
