"""Inverse reflection: a discriminator learns to tell the policy's actions from the expert's, and what it takes for the expert's is rewarded.

D(s, a), the same Llama with a scalar head read after the action's last token, maximises E_policy[log D] + E_expert[log(1 - D)] (StepAgent, inverse
reflection; Ho and Ermon 2016, arXiv:1606.03476): D → 1 means "policy". The reward of a step is -log D, or log(1 - D) - log D (Fu et al. 2018, arXiv:1710.11248),
which is 0 where D cannot tell. -log D is never negative: where episodes are played, it also pays for not coming to an end.

Both classes are asked at the expert's states (inspection.py), so that D tells actions apart and not the histories before them. Three guards against a
discriminator that wins at once, after which every reward is the same: smoothed labels, a limited number of steps a cycle, and none while it is right
more often than `max_accuracy`; its accuracy on what it has not learned from yet is told every cycle.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.learn.rows import Row, steps_of
from epo_jax.learn.scalar import ScalarBatch, ScalarModel
from epo_jax.model.config import LlamaConfig
from epo_jax.stepagent.inspection import Pair, as_trajectory
from epo_jax.trajectory import Trajectory

REWARDS = ("expert", "log_odds")


def cross_entropy(logits: jax.Array, targets: jax.Array, before: jax.Array) -> jax.Array:
    """-targets · log D - (1 - targets) · log(1 - D) with D = σ(logits)."""
    return jax.nn.softplus(logits) - targets * logits


def rewards_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Rewards of steps from the discriminator's logits, log D - log(1 - D): "expert" is -log D, "log_odds" log(1 - D) - log D."""
    return np.logaddexp(0.0, -logits) if kind == "expert" else -logits


class Discriminator:
    """The discriminator of one run, in `folder`; cycle c's pairs are learned from once, also where a run is stopped in between."""

    def __init__(self, config: ConfigDict, model: LlamaConfig, params: Any, pad_id: int, mesh: Mesh, folder: pathlib.Path) -> None:
        """params: of the policy, of which the trunk begins as a copy."""
        self._config, self._pad_id = config, pad_id
        self._model = ScalarModel(
            model,
            cross_entropy,
            folder,
            trunk=params,
            learning_rate=config.stepagent.discriminator.learning_rate,
            mesh=mesh if mesh.size > 1 else None,
            compute_dtype=config.model.compute_dtype,
            remat=config.model.remat,
        )
        self._learned = self._model.saved()
        if self._learned is not None:
            self._model.restore(self._learned)

    def learn(self, pairs: Sequence[Pair], cycle: int) -> dict[str, float]:
        """At most `discriminator.steps` steps on the pairs of the 0-based cycle, in a seeded order; then it is saved.

        Returns figures: accuracy on all pairs before learning, of the expert's actions and of the policy's apart (pairs that say the same cannot be
        told apart and do not count), the mean loss, and how many steps were taken.
        """
        settings = self._config.stepagent.discriminator
        if self._learned is not None and self._learned > cycle:
            return {}
        told = [pair for pair in pairs if pair.differ]
        expert, policy = (self.logits([as_trajectory(pair, expert=which) for pair in told]) for which in (True, False))
        values = {
            "discriminator_right_on_expert": float(np.mean([one[0] < 0 for one in expert])) if told else float("nan"),
            "discriminator_right_on_policy": float(np.mean([one[0] > 0 for one in policy])) if told else float("nan"),
        }
        accuracy = np.mean(list(values.values()))
        losses: list[float] = []
        smoothing = settings.label_smoothing
        targets = {True: smoothing, False: 1.0 - smoothing}  # of the expert's actions, of the policy's
        rows = [self._row(as_trajectory(pair, expert=which), target) for pair in pairs for which, target in targets.items()]
        epoch = 0
        while len(losses) < settings.steps and rows and not accuracy > settings.max_accuracy:
            order = np.random.default_rng([self._config.seed, cycle, epoch, 2]).permutation(len(rows))
            for step in self._steps([rows[index] for index in order])[: settings.steps - len(losses)]:
                losses.append(self._model.update(step)["loss"])
            epoch += 1
        self._learned = cycle + 1
        self._model.save(self._learned)
        return values | {"discriminator_loss": float(np.mean(losses)) if losses else float("nan"), "discriminator_steps": len(losses)}

    def reward(self, trajectories: Sequence[Trajectory]) -> None:
        """Sets every turn's `process_reward` in trajectories that are not masked."""
        scored = [trajectory for trajectory in trajectories if trajectory.masked is None and trajectory.turns]
        for trajectory, logits in zip(scored, self.logits(scored), strict=True):
            trajectory.judge = "discriminator"
            for turn, reward in zip(trajectory.turns, rewards_of(logits, self._config.stepagent.reward), strict=True):
                turn.process_reward = float(reward)

    def logits(self, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """log D - log(1 - D) of every turn's action, one array [T_i] a trajectory."""
        found: list[np.ndarray] = []
        ends = [np.cumsum([len(turn.prompt_tokens) + len(turn.tokens) for turn in one.turns]) - 1 for one in trajectories]
        for step in self._steps([self._row(one, 0.0) for one in trajectories]):
            for row in self._model.score(step).reshape(-1, step.tokens.shape[-1])[: len(ends) - len(found)]:
                found.append(row[ends[len(found)]])
        return found

    def _row(self, trajectory: Trajectory, target: float) -> Row:
        tokens = np.asarray(trajectory.tokens, np.int32)
        last = np.zeros(len(tokens), np.float32)
        last[np.cumsum([len(turn.prompt_tokens) + len(turn.tokens) for turn in trajectory.turns]) - 1] = 1.0
        return {
            "tokens": tokens,
            "positions": np.arange(len(tokens), dtype=np.int32),
            "segment_ids": np.ones(len(tokens), np.int32),
            "weights": last,
            "targets": target * last,
            "before": np.zeros(len(tokens), np.float32),
        }

    def _steps(self, rows: Sequence[Row]) -> list[ScalarBatch]:
        learn = self._config.learn
        lengths = sorted({*learn.length_buckets, self._config.rollout.max_context})
        made = steps_of(rows, accumulation=learn.accumulation, size=learn.rows, lengths=lengths, fill={"tokens": self._pad_id})
        return [ScalarBatch(**step) for step in made]
