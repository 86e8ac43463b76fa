"""Which trajectories make which optimizer step of a run: a round's, and before the first round those of the demonstrations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import BatchCounts, TrajectoryBatch, make_batches
from epo_jax.mesh import rows_split_over
from epo_jax.rollout import demonstrations
from epo_jax.rollout.tasks import TaskSet
from epo_jax.strategist import Strategist
from epo_jax.trajectory import Trajectory


class RoundBatches:
    """The optimizer steps of one run. Each depends on the configuration and the trajectories alone, so a run that was stopped takes the same."""

    def __init__(self, config: ConfigDict, mesh: Mesh, task_sets: Sequence[TaskSet], strategist: Strategist) -> None:
        self._config, self._mesh, self._task_sets, self._strategist = config, mesh, task_sets, strategist

    def of_round(self, trajectories: Sequence[Trajectory], round: int, values: dict[str, float]) -> Iterator[TrajectoryBatch]:
        """The round's batches: `epochs` passes, each in an order that depends on (seed, round, epoch) alone. values: gets what was left out."""
        learn = self._config.learn
        for epoch in range(learn.epochs):
            order = np.random.default_rng([self._config.seed, round, epoch]).permutation(len(trajectories))
            batches, counts = self.batched([trajectories[index] for index in order], learn)
            values |= {"padding_share": counts.padding_share, "dropped_turns": counts.dropped_turns}
            yield from batches

    def of_demonstrations(self, done: int) -> Iterator[TrajectoryBatch]:
        """Batches of demonstrations, from the `done`-th on; to save padding, those of four steps are sorted by length, or packed.

        Packing wants the lengths of a step unlike, so nothing is sorted for it.
        """
        settings = self._config.warm_start
        size = 4 * settings.rows * settings.accumulation
        stream = self.demonstrations(done // 4 * size)
        for group in itertools.count(done // 4):
            played = list(itertools.islice(stream, size))
            if not settings.packing:
                played.sort(key=lambda trajectory: len(trajectory.tokens))
            batches, _ = self.batched(played, settings)
            order = np.random.default_rng([self._config.seed, group]).permutation(len(batches))
            for index in order[done % 4 if group == done // 4 else 0 :]:
                yield batches[index]

    def demonstrations(self, start: int) -> Iterator[Trajectory]:
        """The experts' demonstrations from the `start`-th on; none comes twice."""
        return demonstrations.demonstrations(
            self._task_sets, start=start, seed=self._config.seed, conversation=self._strategist.conversation
        )

    def steps_of_warm_start(self) -> int:
        """How many optimizer steps the demonstrations make."""
        settings = self._config.warm_start
        return math.ceil(settings.episodes / (settings.rows * settings.accumulation))

    def steps_of_rounds(self, trajectories: Iterable[int]) -> int:
        """How many optimizer steps the rounds make that yield so many trajectories each."""
        learn = self._config.learn
        return sum(learn.epochs * math.ceil(count / (learn.rows * learn.accumulation)) for count in trajectories)

    def batched(self, trajectories: Sequence[Trajectory], steps: ConfigDict) -> tuple[list[TrajectoryBatch], BatchCounts]:
        """Optimizer steps of the size that `steps` (config.learn or config.warm_start) says."""
        return make_batches(
            trajectories,
            packing=steps.packing,
            ways=rows_split_over(self._mesh),
            length_buckets=self._config.learn.length_buckets,
            rows=steps.rows,
            accumulation=steps.accumulation,
            max_length=self._config.learn.max_length,
            pad_id=self._strategist.tokenizer.pad_id,
            normalisation=steps.get("normalisation", "turn"),
        )
