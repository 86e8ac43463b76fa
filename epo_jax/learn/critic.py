"""PPO's critic: what it expects of the rest of an episode, before each turn or each token, and how it learns from what came."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.errors import UserError
from epo_jax.learn.rows import steps_of
from epo_jax.learn.scalar import ScalarBatch, ScalarModel
from epo_jax.model.config import LlamaConfig
from epo_jax.reward.actor_critic import LEVELS, estimate_turns
from epo_jax.trajectory import Trajectory

TRUNKS = ("none", "shared", "own")


def check(config: ConfigDict) -> None:
    """Raises `UserError` for PPO without a critic, and for choices that are not there."""
    critic, settings = config.critic, config.credit
    if critic.trunk not in TRUNKS:
        raise UserError(f"critic.trunk is {critic.trunk!r}: choose one of {', '.join(TRUNKS)}.")
    if settings.gae not in LEVELS:
        raise UserError(f"credit.gae is {settings.gae!r}: choose one of {', '.join(LEVELS)}.")
    if critic.epochs < 1 or critic.clip < 0:
        raise UserError("critic.epochs must be at least 1, and critic.clip at least 0 (off).")
    if settings.estimator == "ppo" and critic.trunk == "none":
        raise UserError("credit.estimator ppo needs a value head: set critic.trunk to shared or own.")
    if critic.trunk != "none" and settings.estimator != "ppo":
        raise UserError(f"critic.trunk is {critic.trunk}, and credit.estimator {settings.estimator} uses no value head: set it to none.")
    if settings.permute and settings.estimator == "ppo" and settings.gae == "token":
        raise UserError("credit.permute moves the advantages of whole turns: set credit.gae to turn.")


def value_loss(clip: float):
    """½ max((V - R)², (clip(V, V_before ± clip) - R)²): Schulman et al.'s clipping of values, as in PPO's code; 0: ½ (V - R)²."""

    def loss(values: jax.Array, targets: jax.Array, before: jax.Array) -> jax.Array:
        plain = jnp.square(values - targets)
        if not clip:
            return 0.5 * plain
        return 0.5 * jnp.maximum(plain, jnp.square(before + jnp.clip(values - before, -clip, clip) - targets))

    return loss


class Critic:
    """The critic of one run, in `folder`; round r learns after it was played, once, also where a run is stopped in between."""

    def __init__(self, config: ConfigDict, model: LlamaConfig, params: Any, pad_id: int, mesh: Mesh, folder: pathlib.Path) -> None:
        """params: the policy's, of which a trunk of its own is a copy."""
        self._config, self._pad_id = config, pad_id
        self._shared = config.critic.trunk == "shared"
        self._model = ScalarModel(
            model,
            value_loss(config.critic.clip),
            folder,
            trunk=None if self._shared else params,
            learning_rate=config.critic.learning_rate,
            mesh=mesh if mesh.size > 1 else None,
            compute_dtype=config.model.compute_dtype,
            remat=config.model.remat,
        )
        self._learned = self._model.saved()
        if self._learned is not None:
            self._model.restore(self._learned)

    def value(self, trajectories: Sequence[Trajectory], policy: Any) -> None:
        """Sets `turn.values` of the trajectories that are not masked and have none yet. policy: the present weights, whose trunk is shared."""
        missing = [each for each in trajectories if each.masked is None and each.turns and not all(turn.values for turn in each.turns)]
        rows = [self._row(trajectory, None) for trajectory in missing]
        trunk = policy if self._shared else None
        scored = [row for step in self._steps(rows) for row in self._model.score(step, trunk).reshape(-1, step.tokens.shape[-1])]
        for trajectory, row in zip(missing, scored, strict=False):  # the last step is filled up with empty rows
            place = 0
            for turn in trajectory.turns:
                place += len(turn.prompt_tokens)
                turn.values = row[place - 1 : place - 1 + self._count(turn)].tolist()
                place += len(turn.tokens)

    def learn(self, trajectories: Sequence[Trajectory], policy: Any, round: int) -> dict[str, float]:
        """`critic.epochs` passes over the 0-based round, towards the advantages' own targets A + V; then it is saved. What is learned is not again.

        {"critic_loss": mean over the first pass, "critic_explained": 1 - Var[R - V] / Var[R] with the values that the round was credited by}.
        """
        if self._learned is not None and self._learned > round:
            return {}
        kept = [each for each in trajectories if each.masked is None and each.turns]
        settings = self._config.credit
        options = {name: settings[name] for name in ("discount", "process_weight", "outcome_weight", "gae_lambda", "gae")}
        targets = [estimate_turns(trajectory, **options)[1] for trajectory in kept]
        rows = [self._row(trajectory, goal) for trajectory, goal in zip(kept, targets, strict=True)]
        losses = []
        for epoch in range(self._config.critic.epochs):
            order = np.random.default_rng([self._config.seed, round, epoch, 1]).permutation(len(rows))
            for step in self._steps([rows[index] for index in order]):
                losses.append((epoch, self._model.update(step, policy if self._shared else None)["loss"]))
        self._learned = round + 1
        self._model.save(self._learned)
        goals = np.concatenate([goal for turns in targets for goal in turns]) if targets else np.zeros(0)
        values = np.concatenate([turn.values[: self._count(turn)] for each in kept for turn in each.turns]) if kept else np.zeros(0)
        spread = goals.var() if goals.size else 0.0
        return {
            "critic_loss": float(np.mean([loss for epoch, loss in losses if epoch == 0])) if losses else float("nan"),
            "critic_explained": float(1.0 - (goals - values).var() / spread) if spread > 0 else float("nan"),
        }

    # --- arrays -----------------------------------------------------------------------------------------------------

    def _count(self, turn: Any) -> int:
        return 1 if self._config.credit.gae == "turn" else max(1, len(turn.tokens))

    def _row(self, trajectory: Trajectory, targets: Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
        """One trajectory; a value stands at the token before the one that it is the value of. Values weigh 1/T_i a turn, 1/k_t a token."""
        tokens = np.asarray(trajectory.tokens, np.int32)
        weights, goals, before = np.zeros((3, len(tokens)), np.float32)
        place = 0
        for index, turn in enumerate(trajectory.turns):
            place += len(turn.prompt_tokens)
            if targets is not None:
                count = self._count(turn)
                here = slice(place - 1, place - 1 + count)
                weights[here] = 1.0 / (len(trajectory.turns) * count)
                goals[here], before[here] = targets[index], turn.values[:count]
            place += len(turn.tokens)
        return {
            "tokens": tokens,
            "positions": np.arange(len(tokens), dtype=np.int32),
            "segment_ids": np.ones(len(tokens), np.int32),
            "weights": weights,
            "targets": goals,
            "before": before,
        }

    def _steps(self, rows: Sequence[dict[str, np.ndarray]]) -> list[ScalarBatch]:
        learn = self._config.learn
        lengths = sorted({*learn.length_buckets, self._config.rollout.max_context})
        made = steps_of(rows, accumulation=learn.accumulation, size=learn.rows, lengths=lengths, fill={"tokens": self._pad_id})
        return [ScalarBatch(**step) for step in made]
