"""One advised seat of an episode: the strategist's session, the actor's session, and the trajectory that grows turn by turn.

The seat does not know the game. Whoever plays it tells the seat what its party reads (`hear`) and carries out what the actor wants (`act`);
a turn is recorded when the seat hears what followed it, and with the last turn the episode is told to be over (`over`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from epo_jax.errors import UserError
from epo_jax.generate.engine import ContextFull, Engine, Sampling
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout.actors import Actor
from epo_jax.rollout.exchange import is_admissible
from epo_jax.rollout.tasks import TaskSet
from epo_jax.trajectory import Trajectory, Turn

_LABEL = re.compile(r"\s*\w+:\s*")  # "Strategy: ", which is not among the words that are counted


@dataclasses.dataclass(frozen=True)
class Adviser:
    """Who sits at a seat: a strategist's weights behind an engine (alone.Silence where nobody advises), and the actor that it advises.

    name: "current", "untrained", "round 3", "none", "react", …: how the other seat's lineage tells of it.
    """

    name: str
    engine: Engine
    conversation: ConversationFormat
    actor: Actor
    sampling: Sampling
    weights_version: str

    @property
    def lineage(self) -> dict[str, str]:
        """What the other seat's trajectory keeps of it, as `extra["partner"]`."""
        return {"strategist": self.name, "weights": self.weights_version, "actor": self.actor.name}


class Seat:
    """A seat from its first observation to the end of the episode; `close` gives the sessions back, whatever happened."""

    def __init__(self, adviser: Adviser, task_set: TaskSet, trajectory: Trajectory, seed: int) -> None:
        """trajectory: empty, with its `first_observation`; the seat fills in the rest. seed: of what strategist and actor sample."""
        self._adviser, self._task_set, self.trajectory = adviser, task_set, trajectory
        trajectory.weights_version = adviser.weights_version
        trajectory.actor = adviser.actor.name
        trajectory.temperature = adviser.sampling.temperature
        opening = task_set.prompts.opening(trajectory.first_observation)
        trajectory.extra |= {"messages": opening, "replies": [], "illegal_actions": 0}
        if task_set.max_words:
            trajectory.extra["overlong_strategies"] = 0
        self._observation = trajectory.first_observation
        self._prompt_tokens = adviser.conversation.start(opening)
        self._pending: dict[str, Any] | None = None  # the turn that was played, until it is heard what followed
        self._session = adviser.engine.open(seed)
        self._acting = adviser.actor.begin(task_set.environment, seed)

    @property
    def moved(self) -> bool:
        """Whether it acted, and has not heard yet what followed."""
        return self._pending is not None

    @property
    def turns(self) -> int:
        """How many were played."""
        return len(self.trajectory.turns) + self.moved

    async def act(self, admissible: Sequence[str]) -> str | None:
        """The seat's action: the strategist advises, the actor acts. None where there is none to be had; `trajectory.end` then says why.

        A failing actor masks the trajectory; it never becomes a score of zero. Raises `UserError` for what would fail every episode alike (a
        spent budget, a wrong key).
        """
        trajectory, adviser = self.trajectory, self._adviser
        try:
            sampled = await adviser.engine.generate(self._session, self._prompt_tokens, adviser.sampling)
            strategy = adviser.conversation.text(sampled.tokens)
            shown = self._shown(strategy)
            action = await self._acting.act(self._observation, strategy=shown, admissible=admissible)
        except ContextFull:  # the strategist's, or the actor's own
            trajectory.end = "context"
            return None
        except UserError:
            raise
        except Exception as error:  # the actor may be any program or server: whatever it raises masks this episode
            trajectory.masked = f"actor failed: {type(error).__name__}: {error}"
            trajectory.end = f"error: {type(error).__name__}"
            return None
        trajectory.extra["illegal_actions"] += not is_admissible(action, admissible)
        if shown != strategy:
            trajectory.extra["overlong_strategies"] += 1
        self._pending = {
            "prompt_tokens": self._prompt_tokens,
            "tokens": sampled.tokens,
            "logprobs": sampled.logprobs,
            "stop_reason": sampled.stop_reason,
            "strategy": strategy,
            "action": action,
        }
        return action

    def hear(self, observation: str, *, reward: float, progress: float | None) -> None:
        """What followed the last action: with it the turn is whole."""
        turn = Turn(**self._pending, observation=observation, reward=reward, progress=progress)
        self._pending = None
        self.trajectory.turns.append(turn)
        reply = self._task_set.prompts.after(turn.action, observation)
        self.trajectory.extra["replies"].append(reply)
        self._observation = observation
        self._prompt_tokens = self._adviser.conversation.reply_and_continue(turn.tokens, reply)

    def close(self) -> None:
        """Gives back both sessions, and keeps what the actor counted."""
        self.trajectory.extra |= self._acting.counts
        self._adviser.engine.close(self._session)
        self._acting.close()

    def _shown(self, strategy: str) -> str:
        """The strategy as the actor reads it: at most `max_words` words after its label. The trajectory keeps what was sampled."""
        limit = self._task_set.max_words
        if not limit:
            return strategy
        label = match.group() if (match := _LABEL.match(strategy)) else ""
        words = strategy[len(label) :].split()
        return strategy if len(words) <= limit else label + " ".join(words[:limit])
