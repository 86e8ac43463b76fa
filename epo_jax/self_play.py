"""Opponents of a run's strategist where an environment has two seats: earlier rounds' weights, kept in the run's folder, and actors alone.

    opponents/round-0      the strategist before its first round, as a Hugging Face folder; always kept
    opponents/round-3      before its fourth, where opponents of earlier rounds may be met, or rounds are played ahead (play_ahead.py)

Who they are and when they are met is told in rollout/opponents.py.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import strategist as strategists
from epo_jax.errors import UserError
from epo_jax.hosts import exchange
from epo_jax.learn.step import dtype_of
from epo_jax.model import hf_weights
from epo_jax.rollout import opponents
from epo_jax.rollout.actors import Actor
from epo_jax.rollout.alone import Silence, check_alone
from epo_jax.rollout.seat import Adviser
from epo_jax.strategist import Strategist


def check(config: ConfigDict, environments: Iterable[str], needs_strategy: bool) -> None:
    """Raises `UserError` for opponents that cannot be met. needs_strategy: of the run's actor."""
    settings = config.self_play
    weights = settings.opponents.to_dict()
    opponents.check_weights(weights)
    if settings.memory < 1:
        raise UserError(f"self_play.memory is {settings.memory}: give the number of rounds, 1 or more, that earlier opponents come from.")
    if settings.evaluate not in opponents.KINDS or settings.evaluate == opponents.EARLIER:
        known = ", ".join(kind for kind in opponents.KINDS if kind != opponents.EARLIER)
        raise UserError(f"self_play.evaluate is {settings.evaluate!r}: choose one of {known}.")
    for mode in opponents.ALONE:
        if weights.get(mode) or settings.evaluate == mode:
            check_alone(config.actor, needs_strategy, mode, environments)


class Opponents:
    """Those of one run. Nothing is loaded, kept or asked for before somebody meets it."""

    def __init__(self, config: ConfigDict, strategist: Strategist, mesh: Mesh, folder: pathlib.Path, actor: Actor) -> None:
        self._config, self._strategist, self._mesh, self._actor = config, strategist, mesh, actor
        self._run = folder
        self._settings = config.self_play
        self._weights = self._settings.opponents.to_dict()
        self._advisers: dict[str, Adviser] = {}

    def remember(self, round: int, params: Any) -> None:
        """Keeps the weights that `round` begins with, if anybody may meet them later; and forgets those that nobody will."""
        wanted = round == 0 or self._config.async_rounds or self._weights.get(opponents.EARLIER)
        if wanted and not exchange.by_first(self._of_round(round).exists):
            hf_weights.save(self._of_round(round), self._strategist.config, params, self._run / "tokenizer")
        # One later than it could be: a run may go back a checkpoint.
        for forgotten in range(1, round - self._settings.memory - 1) if exchange.first() else ():
            shutil.rmtree(self._of_round(forgotten), ignore_errors=True)

    def weights_of_round(self, round: int) -> Any:
        """The parameters that `round` began with, in the dtype that playing computes in."""
        dtype = dtype_of(self._config.model.compute_dtype)
        return strategists.from_checkpoint(str(self._of_round(round)), dtype=dtype, mesh=self._mesh if self._mesh.size > 1 else None).params

    def of_round(self, round: int) -> Callable[[int], str]:
        """(index of an episode or group) → whom it meets in this round."""
        seed, memory = self._config.seed, self._settings.memory
        return lambda index: opponents.drawn(self._weights, seed=seed, round=round, index=index, memory=memory)

    def of_evaluation(self) -> str:
        """Whom every evaluation meets: the same one after every round."""
        return opponents.FIRST_ROUND if self._settings.evaluate == opponents.UNTRAINED else self._settings.evaluate

    def advisers(self, names: Iterable[str], sampling: Any) -> dict[str, Adviser]:
        """Those of `names` that need weights or a mode; engines of rounds that are not among them are given up."""
        wanted = set(names) - {opponents.SELF, opponents.SCRIPTED}
        for name in [name for name in self._advisers if name not in wanted]:
            self._advisers.pop(name).engine.shutdown()
        for name in sorted(wanted):
            if name not in self._advisers or self._advisers[name].sampling != sampling:
                self._advisers[name] = self._make(name, sampling)
        return dict(self._advisers)

    def shutdown(self) -> None:
        """Gives up all engines."""
        self.advisers((), None)

    def _make(self, name: str, sampling: Any) -> Adviser:
        round = opponents.round_of(name)
        if round is None:
            return alone(self._actor, name, sampling)
        if name in self._advisers:
            engine = self._advisers[name].engine
        else:
            engine = strategists.engine(self._strategist, self.weights_of_round(round), self._config, self._mesh, name)
        return Adviser(name, engine, self._strategist.conversation, self._actor, sampling, name)

    def _of_round(self, round: int) -> pathlib.Path:
        return _of_round(self._run, round)


def start_of(run: pathlib.Path) -> pathlib.Path:
    """Where a run's folder keeps what its first round began with, if it ever had two seats to fill."""
    return _of_round(run, 0)


def _of_round(run: pathlib.Path, round: int) -> pathlib.Path:
    return run / "opponents" / f"round-{round}"


def alone(actor: Any, mode: str, sampling: Any) -> Adviser:
    """A seat that nobody advises: the actor in a mode of rollout/alone.py."""
    silence = Silence()
    return Adviser(mode, silence, silence, actor.without_strategist(mode), sampling, silence.weights_version)
