"""Episodes without a strategist, to compare with: the actor acts alone, or writes a strategy of its own before it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from epo_jax.errors import UserError
from epo_jax.generate.engine import Sampled, Sampling
from epo_jax.rollout.actors import Actor

MODES = ("none", "react")


class SelfReliantActor(Actor, Protocol):
    """An actor whose `needs_strategy` is False: where the strategy is "", it decides by itself."""

    def thinking_first(self) -> Actor:
        """The same actor, except that where the strategy is "" it writes one of its own before each action (ReAct); `name` says so."""
        ...


def alone(actor: Actor, mode: str) -> Actor:
    """The actor for episodes without a strategist: as it is (`none`), or thinking first (`react`).

    Raises `UserError` for an actor that can do nothing by itself.
    """
    if actor.needs_strategy:
        raise UserError(
            f"--strategist={mode} lets the actor play alone, and the actor {actor.name} only carries out a strategist's words: "
            "give an actor that is a language model, or --strategist=vanilla or trained."
        )
    return actor.thinking_first() if mode == "react" else actor


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
