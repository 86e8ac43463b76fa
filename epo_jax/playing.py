"""The episodes of a run: those of a round, those of the next round while the present one is learned from, and those of an evaluation.

Here is the engine, with the weights that it samples from. What an episode is made of is told in epo_jax/rollout/. Of several processes each has an
engine on its own devices and plays its share of the episodes; every phase ends with all episodes at all of them (hosts/shares.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import strategist as strategists
from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.hosts import arrays, exchange, shares
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.learner import Learner
from epo_jax.mesh import param_shardings
from epo_jax.partners import Partners
from epo_jax.play_ahead import meanwhile
from epo_jax.rollout.environments import Here
from epo_jax.rollout.keep import play_and_keep
from epo_jax.rollout.play import Episode, Player, episodes_of_evaluation, episodes_of_round, place
from epo_jax.rollout.tasks import TaskSet
from epo_jax.rollout.workers import Workers
from epo_jax.run_folder import RunFolder
from epo_jax.self_play import Opponents
from epo_jax.strategist import Strategist
from epo_jax.trajectory import Trajectory, read_jsonl


def round_of(config: ConfigDict, task_sets: Sequence[TaskSet], opponents: Opponents, round: int) -> list[Episode]:
    """The episodes of a round, which the configuration alone decides."""
    rollout = config.rollout
    return episodes_of_round(
        task_sets,
        count=rollout.episodes,
        group_size=rollout.group_size,
        seed=config.seed,
        round=round,
        opponent=opponents.of_round(round),
    )


class _Played(NamedTuple):
    """What this process has of a phase. trouble: why it could not go on."""

    trajectories: list[Trajectory]
    figures: dict[str, float]
    trouble: UserError | None


def _raise(trouble: UserError | None) -> None:
    if trouble is not None:
        raise trouble


class Playing:
    """Plays for one run, with the learner's weights of the moment at which `renew` was last called."""

    def __init__(
        self,
        config: ConfigDict,
        stop: StopRequest,
        task_sets: Sequence[TaskSet],
        strategist: Strategist,
        partners: Partners,
        opponents: Opponents,
        mesh: Mesh,
        folder: RunFolder,
        learner: Learner,
    ) -> None:
        self._config, self._stop, self._task_sets, self._folder = config, stop, task_sets, folder
        self._strategist, self._partners, self._opponents, self._learner = strategist, partners, opponents, learner
        self._mesh, self._own_mesh = mesh, arrays.own_mesh(mesh)
        self._environments = Workers(config.rollout.workers) if config.rollout.workers else Here()
        self._figures_ahead: dict[str, float] = {}
        self.engine = self.make_engine()

    def make_engine(self) -> Engine:
        """One that samples from the learner's present weights."""
        return strategists.engine(self._strategist, self._weights(), self._config, self._own_mesh, self._learner.version)

    def renew(self) -> None:
        """From now on the engine samples from the learner's present weights."""
        self.engine.update_weights(self._weights(), self._learner.version)

    def release(self) -> None:
        """Makes room for gradient and activations, beside which the engine's weights and caches would lie; `renew` brings them back."""
        if not self.plays_ahead:
            self.engine.release()

    def close(self) -> None:
        """Ends the worker processes, if there are any."""
        if isinstance(self._environments, Workers):
            self._environments.close()

    def shutdown(self) -> None:
        """Nothing is played any more."""
        self._opponents.shutdown()
        self.engine.shutdown()

    # --- phases -----------------------------------------------------------------------------------------------------

    def round(self, values: dict[str, float]) -> list[Trajectory]:
        """The round's episodes; those that an earlier start already played with the same weights, or that were played ahead, are read back."""
        round = self._learner.position.round
        path = self._folder.trajectories(round)
        if self._learner.position.played_ahead:
            values |= self._figures_ahead
            return sorted(read_jsonl(path), key=place)
        sampling = strategists.sampling(self._config, self._config.rollout.temperature)
        return self._play(f"round {round + 1} play", self._episodes(round), sampling, path, values)

    def evaluation(self, values: dict[str, float]) -> list[Trajectory]:
        """The held-out tasks with the present weights, always the same ones."""
        sampling = strategists.sampling(self._config, self._config.evaluate.temperature)
        episodes = episodes_of_evaluation(self._task_sets, opponent=self._opponents.of_evaluation())
        return self._play("evaluation", episodes, sampling, self._folder.evaluation(self._learner.position.round), values)

    @property
    def plays_ahead(self) -> bool:
        """Whether the next round is played while the present one is learned from."""
        return bool(self._config.async_rounds) and self._learner.position.round + 1 < self._config.rounds

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """While the body learns, plays the next round with the weights that the present one begins with, if the configuration says so."""
        if not self.plays_ahead:
            yield
            return
        position, sampling = self._learner.position, strategists.sampling(self._config, self._config.rollout.temperature)
        round = position.round + 1
        # The learner gives its own arrays away with its next step; and a round that was stopped halfway no longer has those it began with.
        fresh = position.steps == 0
        params = self._weights(copy=True) if fresh else self._opponents.weights_of_round(position.round)
        self.engine.update_weights(params, self._learner.version)
        path = self._folder.trajectories(round)
        begun = self._begin(f"round {round + 1} play", self._episodes(round), sampling, path, ahead=True)
        played: list[_Played] = []
        try:
            with meanwhile(lambda should_stop: played.append(begun(should_stop))):
                yield
                self._learner.save()  # what was learned stays, should the play that is waited for fail
        except Stopped:
            exchange.agreed(lambda: _raise(played[0].trouble if played else None))  # why it was called off, if it was
            raise
        _, self._figures_ahead = self._end(path, played[0])

    # --- their parts ------------------------------------------------------------------------------------------------

    def _episodes(self, round: int) -> list[Episode]:
        return round_of(self._config, self._task_sets, self._opponents, round)

    def _play(self, title: str, episodes: list[Episode], sampling: Sampling, path: Path, values: dict[str, float]) -> list[Trajectory]:
        """Plays `episodes` and appends each to `path` as it ends; those that `path` already holds are not played again."""
        trajectories, figures = self._end(path, self._begin(title, episodes, sampling, path)(lambda: False))
        values |= figures
        return trajectories

    def _begin(
        self, title: str, episodes: list[Episode], sampling: Sampling, path: Path, *, ahead: bool = False
    ) -> Callable[[Callable[[], bool]], _Played]:
        """(should_stop) → what this process has played when its share is played, or it should stop, or it cannot go on."""
        position = self._learner.position
        learning = position.steps > 0 and not ahead
        mine, share = shares.begin(path, episodes, self.engine.weights_version, learning=learning)
        player = Player(
            engine=self.engine,
            conversation=self._strategist.conversation,
            actor=self._partners.actor,
            sampling=sampling,
            round=position.round + ahead,
            weights_version=self.engine.weights_version,
            others=self._opponents.advisers({episode.opponent for episode in episodes if episode.task_set.two_seats}, sampling),
            evaluator=self._partners.evaluator,
            environments=self._environments,
        )

        def play(should_stop: Callable[[], bool]) -> _Played:
            try:
                trajectories, figures = play_and_keep(
                    title,
                    player,
                    share,
                    mine,
                    at_once=self._config.rollout.slots,
                    should_stop=lambda: should_stop() or self._stop.requested,
                    learning=learning,
                    note=self._partners.clients.note,
                    quiet=ahead,
                )
                return _Played(trajectories, figures, None)
            except UserError as error:
                self._stop.call_off()
                return _Played([], {}, error)

        return play

    def _end(self, path: Path, played: _Played) -> tuple[list[Trajectory], dict[str, float]]:
        """What all processes have played, and their figures. Where one was asked to stop, all save and stop; where one cannot go on, nobody can."""
        trajectories, stop = shares.end(path, played.trajectories, played.trouble, self._stop.requested)
        if stop:
            self._learner.save_and_stop()
        return trajectories, shares.as_one(played.figures)

    def _weights(self, *, copy: bool = False) -> Any:
        """The learner's present weights where this process plays with them."""
        params = self._learner.playing_params(copy=copy)
        return arrays.own_copy(params, param_shardings(self._strategist.config, self._own_mesh), self._mesh)
