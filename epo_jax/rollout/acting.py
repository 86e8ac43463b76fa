"""No separate actor: the policy acts itself (StepAgent). What it says holds the action; exchange.read_action says how it is read."""

from __future__ import annotations

from collections.abc import Sequence

from envs import ANYTHING
from epo_jax.rollout.exchange import read_action


class ActingPolicy:
    """Stands where an actor stands, and takes the action out of the policy's own words: behind "Action:", or else the first line."""

    name = "policy"
    needs_strategy = True
    money = 0.0
    counts: dict[str, int] = {}

    def begin(self, environment: str, seed: int) -> ActingPolicy:
        return self

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        return strategy if list(admissible) == [ANYTHING] else read_action(strategy, admissible)

    def close(self) -> None:
        pass
