"""Inverse reflection: a discriminator learns to tell the policy's actions from the expert's, and what it takes for the expert's is rewarded.

D(s, a), the same Llama with a scalar head read after the action's last token, maximises E_policy[log D] + E_expert[log(1 - D)] (StepAgent, inverse
reflection; Ho and Ermon 2016, arXiv:1606.03476): D → 1 means "policy". The reward of a step is -log D, or log(1 - D) - log D (Fu et al. 2018,
arXiv:1710.11248), which is 0 where D cannot tell. -log D is never negative: where episodes are played, it also pays for not coming to an end.

Both classes are asked at the expert's states (inspection.py), so that D tells actions apart and not the histories before them; both actions of all
states of a trajectory are one row that branches (branches.py). Nothing follows an inspected action, so its advantage is its reward minus what
the critic expected at its state.

Three guards against a discriminator that wins at once, after which every reward is the same: smoothed labels, a limited number of steps a cycle, and
none while it is right more often than `max_accuracy`; its accuracy on what it has not learned from yet is told every cycle.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import BranchedBatch
from epo_jax.learn.rows import Row, steps_of
from epo_jax.learn.scalar import ScalarBatch, ScalarModel
from epo_jax.model.config import LlamaConfig
from epo_jax.stepagent import branches
from epo_jax.stepagent.branches import Branched
from epo_jax.stepagent.inspection import differing
from epo_jax.trajectory import Trajectory

REWARDS = ("expert", "log_odds")


def cross_entropy(logits: jax.Array, targets: jax.Array, before: jax.Array) -> jax.Array:
    """-targets · log D - (1 - targets) · log(1 - D) with D = σ(logits)."""
    return jax.nn.softplus(logits) - targets * logits


def rewards_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Rewards of steps from the discriminator's logits, log D - log(1 - D): "expert" is -log D, "log_odds" log(1 - D) - log D."""
    return np.logaddexp(0.0, -logits) if kind == "expert" else -logits


class Discriminator:
    """The discriminator of one run, in `folder`; cycle c's trajectories are learned from once, also where a run is stopped in between."""

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

    def learn(self, trajectories: Sequence[Trajectory], cycle: int) -> dict[str, float]:
        """At most `discriminator.steps` steps on the inspected trajectories of the 0-based cycle, in a seeded order; then it is saved.

        Returns figures: accuracy before learning, of the expert's actions and of the policy's apart (actions that say the same cannot be told
        apart and do not count), the mean loss, and how many steps were taken.
        """
        settings = self._config.stepagent.discriminator
        if self._learned is not None and self._learned > cycle:
            return {}
        told = [branches.of(trajectory) for trajectory in trajectories]
        values = self._accuracy(told, [differing(trajectory) for trajectory in trajectories])
        accuracy = np.mean(list(values.values()))
        losses: list[float] = []
        rows = [self._row_to_learn(one, settings.label_smoothing) for one in told]
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
        """Sets every turn's `process_reward` in trajectories that are not masked: of the policy's action there where it was inspected."""
        scored = [trajectory for trajectory in trajectories if trajectory.masked is None and trajectory.turns]
        for trajectory, logits in zip(scored, self.logits(scored), strict=True):
            trajectory.judge = "discriminator"
            for turn, reward in zip(trajectory.turns, rewards_of(logits, self._config.stepagent.reward), strict=True):
                turn.process_reward = float(reward)

    def logits(self, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """log D - log(1 - D) of every turn's action, the policy's where a trajectory was inspected: one array [T_i] a trajectory."""
        rows, places = [], []
        for trajectory in trajectories:
            if "inspected" in trajectory.extra:
                one = branches.of(trajectory)
                rows.append(self._row(one))
                places.append(branches.ends(one.policy))
            else:
                rows.append(self._row(branches.trunk_of(trajectory)))
                places.append(np.cumsum([len(turn.prompt_tokens) + len(turn.tokens) for turn in trajectory.turns]) - 1)
        return [found[place] for found, place in zip(self._scores(rows), places, strict=True)]

    def _accuracy(self, told: Sequence[Branched], differ: Sequence[np.ndarray]) -> dict[str, float]:
        """The share of the actions that differ which it takes for what they are."""
        found = list(zip(told, differ, self._scores([self._row(one) for one in told]), strict=True))
        expert = [logits[branches.ends(one.expert)][which] < 0 for one, which, logits in found]
        policy = [logits[branches.ends(one.policy)][which] > 0 for one, which, logits in found]
        right = {"discriminator_right_on_expert": np.concatenate([[], *expert]), "discriminator_right_on_policy": np.concatenate([[], *policy])}
        return {name: float(np.mean(each)) if each.size else float("nan") for name, each in right.items()}

    def _scores(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The number after every token, and after padding: one array [T] a row."""
        scores = [row for step in self._steps(rows) for row in self._model.score(step).reshape(-1, step.tokens.shape[-1])]
        return scores[: len(rows)]  # the last step is filled up with empty rows

    def _row_to_learn(self, one: Branched, smoothing: float) -> Row:
        row, asked = self._row(one), {smoothing: branches.ends(one.expert), 1.0 - smoothing: branches.ends(one.policy)}
        for target, places in asked.items():
            row["weights"][places], row["targets"][places] = 1.0, target
        return row

    def _row(self, one: Branched) -> dict[str, np.ndarray]:
        return one.arrays() | {name: np.zeros(len(one.tokens), np.float32) for name in ("weights", "targets", "before")}

    def _steps(self, rows: Sequence[Row]) -> list[ScalarBatch]:
        learn = self._config.learn
        lengths = sorted({*learn.length_buckets, self._config.rollout.max_context})
        fill = branches.FILL | {"tokens": self._pad_id}
        return [ScalarBatch(**step) for step in steps_of(rows, accumulation=learn.accumulation, size=learn.rows, lengths=lengths, fill=fill)]


def batches(
    trajectories: Sequence[Trajectory], *, rows: int, accumulation: int, lengths: Sequence[int], pad_id: int, clone_weight: float = 0.0
) -> list[BranchedBatch]:
    """PPO's optimizer steps [accumulation, rows, T] on inspected actions, an inspected trajectory a row.

    A turn's advantage is that of the policy's action at its state: loss weights A_i / (n k_i) on that action's k_i tokens, at n states.
    clone_weight (not in StepAgent's paper; Ouyang et al. 2022, arXiv:2203.02155, PPO-ptx): the advantage of the expert's actions. Nobody sampled
    them, so no ratio is clipped: they add clone_weight times the mean over states of the mean -log π of the expert's tokens.
    """
    made = []
    for trajectory in trajectories:
        row = branches.of(trajectory)
        states = len(trajectory.turns)
        policy = [turn.advantage / (states * len(found["tokens"])) for turn, found in zip(trajectory.turns, trajectory.extra["inspected"])]
        expert = [clone_weight / (states * len(turn.tokens)) for turn in trajectory.turns]
        said = row.policy + (row.expert if clone_weight else 0)
        made.append(row.arrays() | {
            "loss_weights": (np.append(0.0, policy)[row.policy] + np.append(0.0, expert)[row.expert]).astype(np.float32),
            "behavior_logprobs": np.where(said > 0, row.behavior_logprobs, 0.0).astype(np.float32),
            "turn_ids": said,
        })  # fmt: skip
    return list(branches.batches(made, size=rows, accumulation=accumulation, lengths=lengths, pad_id=pad_id))
