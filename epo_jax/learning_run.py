"""What every run is made of that plays its environments between optimizer steps, and the phases that all of them have.

The kinds of run are `train.Run` (self-play) and `stepagent.run.StepAgentRun` (StepAgent's cycles).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import compilation, partners, self_play, strategist as strategists
from epo_jax.api.failures import ApiFatal, BudgetSpent
from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.evaluation import mean_outcome
from epo_jax.hosts import arrays, exchange, shares
from epo_jax.hosts.unwritten import Unwritten
from epo_jax.interrupt import StopRequest
from epo_jax.learn.learner import Learner
from epo_jax.mesh import describe, param_shardings
from epo_jax.model import hf_weights
from epo_jax.partners import Partners
from epo_jax.playing import Playing
from epo_jax.report import evaluations, wandb_run
from epo_jax.report.console import say
from epo_jax.report.metrics import MetricsWriter
from epo_jax.report.page.run_page import RunPage
from epo_jax.rollout import demonstrations, tasks
from epo_jax.round_batches import RoundBatches
from epo_jax.run_folder import RunFolder
from epo_jax.self_play import Opponents
from epo_jax.strategist import Strategist


class LearningRun(abc.ABC):
    """One run: what it is made of, where it stands, and its phases in the order in which they happen."""

    unit = "round"  # what its rounds are called
    trained = "strategist"  # and what learns in them
    checked: tuple[Callable[[ConfigDict], None], ...] = (partners.check_actor,)  # which of its partners must be there

    def __init__(self, config: ConfigDict, stop: StopRequest) -> None:
        self.config, self.stop = config, stop
        _, self.task_sets, *_ = all_or_what_is_missing(
            lambda: strategists.find(config.model.source),
            lambda: tasks.load(config),
            *(lambda check=check: check(config) for check in self.checked),
            lambda: wandb_run.check(config),
        )
        self.mesh = strategists.make_run_mesh(config)
        own_mesh = arrays.own_mesh(self.mesh)
        self.check()
        partners.check_scored(config, self.task_sets)
        if self.converses:
            played = [task_set.environment for task_set in self.task_sets]
            self_play.check(config, played, partners.ACTORS[config.actor].needs_strategy)
        self.strategist = strategists.load(
            config, self.mesh, lambda: demonstrations.texts(self.task_sets, config.model.architecture.tokenizer_games)
        )
        self.read_data()
        self.folder = RunFolder.open(config)
        if (trouble := compilation.keep_programs(config.compilation_cache, self.folder.path)) is not None:
            say(trouble)
        exchange.by_first(lambda: self.strategist.tokenizer.save(self.folder.tokenizer))
        self.partners = Partners(config, self.folder.path, self._untrained(own_mesh), own_mesh)
        self.opponents = Opponents(config, self.strategist, own_mesh, self.folder.path, self.partners.actor)
        silent = None if exchange.first() else Unwritten(self.folder.path)
        self.metrics = silent or MetricsWriter.of_run(config, self.folder.path)
        self.page = silent or RunPage(self.folder.path)
        self.batches = RoundBatches(config, self.mesh, self.task_sets, self.strategist)
        self.learner = self.make_learner()
        self.playing = Playing(
            config, stop, self.task_sets, self.strategist, self.partners, self.opponents, self.mesh, self.folder, self.learner
        )

    # --- what a kind of run says -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def check(self) -> None:
        """Raises `UserError` for a configuration that this kind of run cannot follow on `self.mesh`."""

    def read_data(self) -> None:
        """Reads what else the run learns from, when there is a tokenizer and before anything is written."""

    @abc.abstractmethod
    def make_learner(self) -> Learner:
        """What learns, with the strategist's weights; everything else but `playing` is there."""

    @abc.abstractmethod
    def plan(self) -> str:
        """What happens in the run, in half a line."""

    @abc.abstractmethod
    def warm_start(self) -> None:
        """Clones the expert, and begins the rounds."""

    @abc.abstractmethod
    def round(self) -> None:
        """The whole of the present round; afterwards the learner stands at the next one, and `playing` has its weights."""

    # --- the phases -------------------------------------------------------------------------------------------------

    def everything(self) -> None:
        """All phases, from wherever the run stands to its end."""
        try:
            self._everything()
        except (ApiFatal, BudgetSpent) as error:
            raise UserError(f"{str(error).rstrip('.')}. What was played and judged is in {self.folder.path}; the same command continues.") from error
        finally:
            self.partners.close()
            self.playing.close()

    def _everything(self) -> None:
        say(
            f"{self.strategist.name} {self.trained}, {self.strategist.config.num_params / 1e6:.1f} M parameters, on {describe(self.mesh)}; "
            f"{' and '.join(map(str, self.task_sets))}; {self.plan()}; writes {self.folder.path}"
        )
        for line in self.learner.placement:
            say(line)
        if self.folder.resumed:
            say(f"continuing: {self.learner.position}")
        if self.learner.position.phase == "warm_start":
            self.warm_start()
        position = self.learner.position
        while True:
            if position.steps == 0 and (self.converses or self.config.async_rounds):
                self.opponents.remember(position.round, self.learner.exported_params())
            if position.steps == 0 and (position.round % self.config.evaluate.every == 0 or position.round >= self.config.rounds):
                self.evaluate()
            if position.round >= self.config.rounds:
                break
            self.round()
        self.finish()

    def evaluate(self) -> None:
        """The held-out tasks with the present weights, always the same ones; says how they compare with the first evaluation."""
        values: dict[str, float] = {}
        trajectories = self.playing.evaluation(values)
        values |= shares.as_one(self.partners.clients.figures())
        evaluations.record(
            trajectories, values,
            after=self.learner.position.round, unit=self.unit, task_sets=self.task_sets, metrics=self.metrics, folder=self.folder,
        )  # fmt: skip
        if self.config.checkpoint.keep_best:
            self.learner.keep_if_best(mean_outcome(trajectories))

    def finish(self) -> None:
        """Leaves what was trained as a Hugging Face folder and says where everything is."""
        self.playing.shutdown()
        evaluations.tell_best(self.learner.position.best, of=self.config.rounds, unit=self.unit, folder=self.folder)
        hf_weights.save(self.folder.export, self.strategist.config, self.learner.final_params(), self.folder.tokenizer)
        self.learner.end_run()
        self.metrics.close()
        self.page.write_or_say_why_not()
        say(
            f"done: the {self.trained} is in {self.folder.export} (a Hugging Face folder), episodes and metrics beside it in {self.folder.path}; "
            f"{self.page.path} shows them"
        )

    # --- their parts ------------------------------------------------------------------------------------------------

    @property
    def converses(self) -> bool:
        """Whether there are opponents to meet."""
        return any(task_set.two_seats for task_set in self.task_sets)

    def _untrained(self, mesh: Mesh) -> Strategist:
        """The strategist as its partners may use it: with weights where this process plays, if one of them is made of them."""
        if self.config.actor != "local" or self.config.local_actor.source not in partners.INITIAL:
            return self.strategist
        params = arrays.own_copy(self.strategist.params, param_shardings(self.strategist.config, mesh), self.mesh)
        return dataclasses.replace(self.strategist, params=params)
