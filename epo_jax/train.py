"""The main command: rounds of self-play, each one played, judged, credited and learned from.

    python -m epo_jax.train --config=configs/alfshop.py[:PRESET] [--config.FIELD=VALUE ...]
    python -m epo_jax.train --config=configs/alfshop.py --dry_run        what it would do, and whether it could; nothing is written

The same command continues a run that was stopped (Ctrl-C, SIGTERM, a kill) where it stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from epo_jax import command_line, compilation, partners, self_play, strategist as strategists
from epo_jax.api.failures import ApiFatal, BudgetSpent
from epo_jax.batch import BatchCounts, TrajectoryBatch, check_buckets, make_batches
from epo_jax.dry_run import DryRun
from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.evaluation import main_figure, main_figures, mean_outcome, report
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn import choices, critic
from epo_jax.learn.critic import Critic
from epo_jax.learn.learner import Learner
from epo_jax.mesh import check_rows, rows_split_over
from epo_jax.model import hf_weights
from epo_jax.offline import OfflineRun
from epo_jax.partners import Partners
from epo_jax.play_ahead import meanwhile
from epo_jax.report import curve, wandb_run
from epo_jax.report.console import bar, report_round, say
from epo_jax.report.metrics import MetricsWriter, describe_each
from epo_jax.report.page.run_page import RunPage
from epo_jax.reward import credit, judge
from epo_jax.reward.group_credit import GROUP_ESTIMATORS
from epo_jax.rollout import demonstrations, tasks
from epo_jax.rollout.keep import play_and_keep
from epo_jax.rollout.play import Episode, Player, episode_seed, episodes_of_evaluation, episodes_of_round, place
from epo_jax.run_folder import RunFolder
from epo_jax.self_play import Opponents
from epo_jax.stepagent.run import StepAgentRun
from epo_jax.trajectory import Trajectory, by_environment, read_jsonl, write_jsonl

CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration: a file, with :PRESET where it has presets.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Check everything that can be checked in half a minute, say what would happen, write nothing.")


def main() -> None:
    """Runs `--config` to its end; a request to stop ends it early, saved, with the exit code that shells expect."""
    config = command_line.config_value(CONFIG)
    kinds = {"rounds": Run, "recorded": OfflineRun, "stepagent": StepAgentRun}
    if config.learn_from not in kinds:
        raise UserError(f"learn_from is {config.learn_from!r}: choose one of {', '.join(kinds)}.")
    if DRY_RUN.value:
        sys.exit(DryRun(config, _check_learning).everything())
    with StopRequest() as stop:
        try:
            kinds[config.learn_from](config, stop).everything()
        except Stopped:
            sys.exit(130)


class Run:
    """One run: what it is made of, where it stands, and its phases in the order in which they happen."""

    def __init__(self, config: ConfigDict, stop: StopRequest) -> None:
        self.config, self.stop = config, stop
        _, self.task_sets, *_ = all_or_what_is_missing(
            lambda: strategists.find(config.model.source),
            lambda: tasks.load(config),
            lambda: partners.check_actor(config),
            lambda: partners.check_judge(config),
            lambda: partners.check_evaluator(config),
            lambda: wandb_run.check(config),
        )
        partners.check_scored(config, self.task_sets)
        if self._converses:
            played = [task_set.environment for task_set in self.task_sets]
            self_play.check(config, played, partners.ACTORS[config.actor].needs_strategy)
        self.mesh = strategists.make_run_mesh(config)
        _check_learning(config, self.mesh)
        self.strategist = strategists.load(
            config, self.mesh, lambda: demonstrations.texts(self.task_sets, config.model.architecture.tokenizer_games)
        )
        self.folder = RunFolder.open(config)
        if (trouble := compilation.keep_programs(config.compilation_cache, self.folder.path)) is not None:
            say(trouble)
        self.strategist.tokenizer.save(self.folder.tokenizer)
        self.partners = Partners(config, self.folder.path, self.strategist, self.mesh)
        self.opponents = Opponents(config, self.strategist, self.mesh, self.folder.path, self.partners.actor)
        self.metrics = MetricsWriter.of_run(config, self.folder.path)
        self.page = RunPage(self.folder.path)
        totals = {"warm_start": self._warm_start_steps(), "rounds": self._steps_in_all()}
        self.ahead: dict[str, float] = {}  # figures of the play that was done ahead
        self.learner = Learner(config, self.strategist, self.mesh, self.folder.checkpoints, stop, totals)
        self.engine = self._make_engine()

    def everything(self) -> None:
        """All phases, from wherever the run stands to its end."""
        try:
            self._everything()
        except (ApiFatal, BudgetSpent) as error:
            raise UserError(f"{str(error).rstrip('.')}. What was played and judged is in {self.folder.path}; the same command continues.") from error
        finally:
            self.partners.close()

    def _everything(self) -> None:
        self._say_plan()
        if self.learner.position.phase == "warm_start":
            self.warm_start()
        position = self.learner.position
        while True:
            if position.steps == 0 and (self._converses or self.config.async_rounds):
                self.opponents.remember(position.round, self.learner.exported_params())
            if position.steps == 0 and (position.round % self.config.evaluate.every == 0 or position.round >= self.config.rounds):
                self.evaluate()
            if position.round >= self.config.rounds:
                break
            values: dict[str, float] = {}
            trajectories = self.play(values)
            self.assign_credit(trajectories, values)
            self.learn(trajectories, values)
            self._report_round(trajectories, values)
        self.finish()

    # --- the phases -----------------------------------------------------------------------------------------------

    def warm_start(self) -> None:
        """Clones the expert's demonstrations: the same step as ever, every strategy with advantage 1."""
        steps, done = self._warm_start_steps(), self.learner.position.steps
        rows: list[dict[str, float]] = []
        with bar("warm start", steps) as progress:
            progress.advance(amount=done)
            for metrics in self.learner.take_steps(self._demonstration_batches(), steps, on_step=progress.advance_reading):
                rows.append(metrics)
                taken = done + len(rows)
                if taken % 50 == 0 or taken == steps:
                    mean = {name: float(np.mean([row[name] for row in rows[-50:]])) for name in ("logprob", "entropy", "grad_norm")}
                    self.metrics.write("warm_start", taken, mean)
                    say(f"warm start {taken}/{steps}: log-probability of a demonstrated token {mean['logprob']:.3f}, {progress.seconds:.0f} s")
        self.learner.begin_rounds()
        self._renew_engine()

    def play(self, values: dict[str, float]) -> list[Trajectory]:
        """The round's episodes; those that an earlier start already played with the same weights, or that were played ahead, are read back."""
        round = self.learner.position.round
        if self.config.credit.estimator == "bc":
            episodes = self.config.rollout.episodes
            return list(itertools.islice(self._demonstrations(self.config.warm_start.episodes + round * episodes), episodes))  # none comes twice
        if self.learner.position.played_ahead:
            values |= self.ahead
            return sorted(read_jsonl(self.folder.trajectories(round)), key=place)
        sampling = self._sampling(self.config.rollout.temperature)
        return self._play(f"round {round + 1} play", self._episodes(round), sampling, self.folder.trajectories(round), values)

    def assign_credit(self, trajectories: list[Trajectory], values: dict[str, float]) -> None:
        """Judge and estimator: rewards, then one advantage a turn. The round's file then holds both."""
        start, settings = time.monotonic(), self.config.credit
        counts = self._judge(trajectories) if settings.estimator != "bc" else judge.JudgeCounts()
        if self.critic is not None:
            self.critic.value(trajectories, self.learner.exported_params())
        options = credit.options_of(settings.estimator, settings.to_dict())
        for group in by_environment(trajectories).values():  # a baseline over both would say which environment is the easier one
            credit.estimate(settings.estimator, group, **options)
            if settings.permute:
                credit.permute_advantages(group, episode_seed(self.config.seed, "permute", self.learner.position.round))
        write_jsonl(self.folder.trajectories(self.learner.position.round), trajectories)
        values["seconds_judge"] = time.monotonic() - start
        values["judge_failed"] = counts.failed
        values["judge_picked_share"] = counts.picked_turns / counts.turns if counts.turns else math.nan

    def learn(self, trajectories: Sequence[Trajectory], values: dict[str, float]) -> None:
        """The round's optimizer steps; then the sampler gets the new weights. With `async_rounds`, the next round is played meanwhile."""
        position, start = self.learner.position, time.monotonic()
        if self.critic is not None:  # first, so that it reads the policy that played
            values |= self.critic.learn(trajectories, self.learner.exported_params(), position.round)
        batches = list(self._batches(trajectories, values))
        rows: list[dict[str, float]] = []
        if not self._plays_ahead:
            self.engine.release()  # its weights and caches would lie beside gradient and activations
        with self._playing_ahead(), bar(f"round {position.round + 1} learn", len(batches)) as progress:
            progress.advance(amount=position.steps)
            done = position.steps
            for metrics in self.learner.take_steps(iter(batches[done:]), len(batches), on_step=progress.advance_reading):
                rows.append(metrics)
                self.metrics.write("step", int(metrics["optimizer_step"]), metrics)
        seconds = time.monotonic() - start
        if rows:
            # The first step of a round scores with the very weights that sampled: any gap is the sampler's error, not learning. Not so ahead.
            values["logprob_gap"] = rows[0]["logprob_gap"] if done == 0 and not position.played_ahead else math.nan
            values |= {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "grad_norm", "entropy", "kl", "ratio_p99")}
            values["learn_tokens_per_second"] = sum(row["read_tokens"] for row in rows) / seconds
        values["seconds_learn"] = seconds
        self.learner.end_round(played_ahead=self._plays_ahead)
        self._renew_engine()

    def evaluate(self) -> None:
        """The held-out tasks with the present weights, always the same ones; says how they compare with the first evaluation."""
        rounds_done, values = self.learner.position.round, dict[str, float]()
        path, first = self.folder.evaluation(rounds_done), self.folder.evaluation(0)
        sampling = self._sampling(self.config.evaluate.temperature)
        episodes = episodes_of_evaluation(self.task_sets, opponent=self.opponents.of_evaluation())
        trajectories = self._play("evaluation", episodes, sampling, path, values)
        values |= describe_each(trajectories) | self.partners.clients.figures()
        for environment, figure in main_figures(trajectories).items():
            name = f"{environment}/{main_figure(environment)}"
            values |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
        self.metrics.write("evaluation", rounds_done, values)
        curve.save(self.metrics.path, self.folder.curve)
        if self.config.checkpoint.keep_best:
            self.learner.keep_if_best(mean_outcome(trajectories))
        before = read_jsonl(first) if rounds_done and first.exists() else []
        for task_set in self.task_sets:
            where = f"evaluation after {rounds_done} rounds, {task_set.environment} {task_set.eval_split}"
            say(f"{where}: {report(trajectories, before, task_set.environment) or f'every episode failed to be played; see {path}'}")

    def finish(self) -> None:
        """Leaves the strategist as a Hugging Face folder and says where everything is."""
        self.opponents.shutdown()
        self.engine.shutdown()
        self._say_best()
        hf_weights.save(self.folder.export, self.strategist.config, self.learner.final_params(), self.folder.tokenizer)
        self.metrics.close()
        self.page.write_or_say_why_not()
        say(
            f"done: the strategist is in {self.folder.export} (a Hugging Face folder), episodes and metrics beside it in {self.folder.path}; "
            f"{self.page.path} shows them"
        )

    # --- their parts ----------------------------------------------------------------------------------------------

    @property
    def _converses(self) -> bool:
        """Whether there are opponents to meet."""
        return any(task_set.two_seats for task_set in self.task_sets)

    def _episodes(self, round: int) -> list[Episode]:
        rollout = self.config.rollout
        return episodes_of_round(
            self.task_sets,
            count=rollout.episodes,
            group_size=rollout.group_size,
            seed=self.config.seed,
            round=round,
            opponent=self.opponents.of_round(round),
        )

    def _play(self, title: str, episodes: list[Episode], sampling: Sampling, path: Path, values: dict[str, float]) -> list[Trajectory]:
        """Plays `episodes` and appends each to `path` as it ends; those that `path` already holds are not played again."""
        trajectories, figures = self._play_and_keep(title, episodes, sampling, path, lambda: self.stop.requested)
        if self.stop.requested:
            self.learner.save_and_stop()
        values |= figures
        return trajectories

    def _play_and_keep(
        self, title: str, episodes: list[Episode], sampling: Sampling, path: Path, should_stop: Callable[[], bool], *, ahead: bool = False
    ) -> tuple[list[Trajectory], dict[str, float]]:
        player = Player(
            engine=self.engine,
            conversation=self.strategist.conversation,
            actor=self.partners.actor,
            sampling=sampling,
            round=self.learner.position.round + ahead,
            weights_version=self.engine.weights_version,
            others=self.opponents.advisers({episode.opponent for episode in episodes if episode.task_set.two_seats}, sampling),
            evaluator=self.partners.evaluator,
        )
        return play_and_keep(
            title,
            player,
            episodes,
            path,
            at_once=self.config.rollout.slots,
            should_stop=should_stop,
            learning=self.learner.position.steps > 0 and not ahead,
            note=self.partners.clients.note,
            quiet=ahead,
        )

    @property
    def _plays_ahead(self) -> bool:
        """Whether the next round is played while the present one is learned from."""
        return bool(self.config.async_rounds) and self.learner.position.round + 1 < self.config.rounds

    @contextlib.contextmanager
    def _playing_ahead(self) -> Iterator[None]:
        """While the body learns, plays the next round with the weights that the present one begins with, if the configuration says so."""
        if not self._plays_ahead:
            yield
            return
        position, sampling = self.learner.position, self._sampling(self.config.rollout.temperature)
        round = position.round + 1
        # The learner gives its own arrays away with its next step; and a round that was stopped halfway no longer has those it began with.
        fresh = position.steps == 0
        params = self.learner.playing_params(copy=True) if fresh else self.opponents.weights_of_round(position.round)
        self.engine.update_weights(params, self.learner.version)
        title, path = f"round {round + 1} play", self.folder.trajectories(round)

        def play(should_stop: Callable[[], bool]) -> None:
            episodes = self._episodes(round)
            _, self.ahead = self._play_and_keep(title, episodes, sampling, path, lambda: should_stop() or self.stop.requested, ahead=True)

        with meanwhile(play):
            yield
            self.learner.save()  # what was learned stays, should the play that is waited for fail
        if self.stop.requested:  # while the play was waited for, which then is not whole
            self.learner.save_and_stop()

    def _judge(self, trajectories: list[Trajectory]) -> judge.JudgeCounts:
        """Scores what is not scored yet. Whatever ends it early, what was scored by then is written and will not be asked again."""
        with bar(f"round {self.learner.position.round + 1} judge", len(trajectories)) as progress:
            try:
                counts = asyncio.run(
                    judge.judge_all(
                        self.partners.judge,
                        trajectories,
                        concurrency=self.config.judge_api.concurrency,
                        on_judged=lambda: progress.advance(self.partners.clients.note()),
                        should_stop=lambda: self.stop.requested,
                    )
                )
            finally:
                write_jsonl(self.folder.trajectories(self.learner.position.round), trajectories)
        if self.stop.requested:
            self.learner.save_and_stop()
        return counts

    def _batches(self, trajectories: Sequence[Trajectory], values: dict[str, float]) -> Iterator[TrajectoryBatch]:
        """The round's batches: `epochs` passes, each in an order that depends on (seed, round, epoch) alone."""
        learn, round = self.config.learn, self.learner.position.round
        for epoch in range(learn.epochs):
            order = np.random.default_rng([self.config.seed, round, epoch]).permutation(len(trajectories))
            batches, counts = self._batched([trajectories[index] for index in order], learn)
            values |= {"padding_share": counts.padding_share, "dropped_turns": counts.dropped_turns}
            yield from batches

    def _demonstration_batches(self) -> Iterator[TrajectoryBatch]:
        """Batches of demonstrations, from where the warm start stands; to save padding, those of four steps are sorted by length, or packed.

        Packing wants the lengths of a step unlike, so nothing is sorted for it.
        """
        settings, done = self.config.warm_start, self.learner.position.steps
        size = 4 * settings.rows * settings.accumulation
        stream = self._demonstrations(done // 4 * size)
        for group in itertools.count(done // 4):
            played = list(itertools.islice(stream, size))
            if not settings.packing:
                played.sort(key=lambda trajectory: len(trajectory.tokens))
            batches, _ = self._batched(played, settings)
            order = np.random.default_rng([self.config.seed, group]).permutation(len(batches))
            for index in order[done % 4 if group == done // 4 else 0 :]:
                yield batches[index]

    def _demonstrations(self, start: int) -> Iterator[Trajectory]:
        return demonstrations.demonstrations(self.task_sets, start=start, seed=self.config.seed, conversation=self.strategist.conversation)

    def _batched(self, trajectories: Sequence[Trajectory], steps: ConfigDict) -> tuple[list[TrajectoryBatch], BatchCounts]:
        """Optimizer steps of the size that `steps` (config.learn or config.warm_start) says."""
        return make_batches(
            trajectories,
            packing=steps.packing,
            ways=rows_split_over(self.mesh),
            length_buckets=self.config.learn.length_buckets,
            rows=steps.rows,
            accumulation=steps.accumulation,
            max_length=self.config.learn.max_length,
            pad_id=self.strategist.tokenizer.pad_id,
            normalisation=steps.get("normalisation", "turn"),
        )

    def _warm_start_steps(self) -> int:
        settings = self.config.warm_start
        return math.ceil(settings.episodes / (settings.rows * settings.accumulation))

    def _steps_in_all(self) -> int:
        learn = self.config.learn
        trajectories = (sum(episode.trajectories for episode in self._episodes(round)) for round in range(self.config.rounds))
        return sum(learn.epochs * math.ceil(count / (learn.rows * learn.accumulation)) for count in trajectories)

    def _sampling(self, temperature: float) -> Sampling:
        return strategists.sampling(self.config, temperature)

    def _make_engine(self) -> Engine:
        return strategists.engine(self.strategist, self.learner.playing_params(), self.config, self.mesh, self.learner.version)

    @functools.cached_property
    def critic(self) -> Critic | None:
        """Made when a round first needs it: a trunk of its own begins as a copy of what the warm start left."""
        if self.config.critic.trunk == "none":
            return None
        pad_id = self.strategist.tokenizer.pad_id
        return Critic(self.config, self.strategist.config, self.learner.exported_params(), pad_id, self.mesh, self.folder.path / "critic")

    def _renew_engine(self) -> None:
        self.engine.update_weights(self.learner.playing_params(), self.learner.version)

    def _say_plan(self) -> None:
        config, model = self.config, self.strategist.config
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
        mesh = " × ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        say(
            f"{self.strategist.name} strategist, {model.num_params / 1e6:.1f} M parameters, on {devices} ({mesh}); "
            f"{' and '.join(map(str, self.task_sets))}; "
            f"{config.rounds} rounds of {config.rollout.episodes} episodes; actor {self.partners.actor.name}, judge {self.partners.judge.name}, "
            f"estimator {config.credit.estimator}{' (permuted: a control)' if config.credit.permute else ''}; writes {self.folder.path}"
        )
        for line in self.learner.placement:
            say(line)
        if self.folder.resumed:
            say(f"continuing: {self.learner.position}")

    def _say_best(self) -> None:
        best = self.learner.position.best
        if best is None:
            return
        figures = ", ".join(
            f"{name} {main_figure(name)} {figure.mean:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
            for name, figure in main_figures(read_jsonl(self.folder.evaluation(best.round))).items()
        )
        say(f"the best round was {best.round} of {self.config.rounds}: {figures}; its weights are checkpoint {best.step}, and what is exported")

    def _report_round(self, trajectories: Sequence[Trajectory], values: dict[str, float]) -> None:
        values |= describe_each(trajectories) | self.partners.clients.figures()
        values["compilations"] = self.engine.stats["compilations"] + self.learner.compilations
        values["compile_seconds"] = compilation.seconds()
        round = self.learner.position.round
        self.metrics.write("round", round, values)
        report_round(round, self.config.rounds, values)
        self.page.write_or_say_why_not()


def _check_learning(config: ConfigDict, mesh: Mesh) -> None:
    """What would otherwise only fail after the first round was played."""
    for name in ("learn", "warm_start") if config.warm_start.episodes else ("learn",):
        check_rows(f"{name}.rows", config[name].rows, mesh)
    if config.learn.overlong != "drop":
        raise UserError("learn.overlong is for recorded conversations (configs/offline.py): an episode that is too long drops whole turns.")
    choices.check(config.learn)
    critic.check(config)
    if config.credit.estimator == "bc" and config.async_rounds:
        raise UserError("credit.estimator bc reads demonstrations and plays nothing that async_rounds could play ahead: set it to False.")
    credit.estimate(config.credit.estimator, [], **credit.options_of(config.credit.estimator, config.credit.to_dict()))
    size, episodes = config.rollout.group_size, config.rollout.episodes
    if size < 1 or episodes % size:
        raise UserError(f"rollout.group_size is {size}: it must divide the {episodes} episodes of a round.")
    if size == 1 and config.credit.estimator in GROUP_ESTIMATORS:
        raise UserError(f"credit.estimator {config.credit.estimator} compares episodes of one task: set rollout.group_size to 2 or more.")
    if config.async_rounds not in (0, 1):
        raise UserError(f"async_rounds is {config.async_rounds}: give 0, or 1 to play one round ahead.")
    if config.async_rounds and not (config.learn.clip_low and config.learn.clip_high):
        raise UserError("async_rounds=1 learns from what earlier weights played: set learn.clip_low and learn.clip_high (0.2 is usual).")
    check_buckets(config.learn.length_buckets, config.learn.max_length)


if __name__ == "__main__":
    command_line.run(main)
