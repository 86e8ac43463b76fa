"""The main command: rounds of self-play, each one played, judged, credited and learned from.

    python -m epo_jax.train --config=configs/alfshop.py[:PRESET] [--config.FIELD=VALUE ...]
    python -m epo_jax.train --config=configs/alfshop.py --dry_run        what it would do, and whether it could; nothing is written

The same command continues a run that was stopped (Ctrl-C, SIGTERM, a kill) where it stood.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from epo_jax import command_line, compilation, partners, preemption
from epo_jax.check_learning import check_learning
from epo_jax.dry_run import DryRun
from epo_jax.errors import UserError
from epo_jax.hosts import exchange, shares
from epo_jax.hosts.joining import joined
from epo_jax.interrupt import Stopped
from epo_jax.learn.critic import Critic
from epo_jax.learn.learner import Learner
from epo_jax.learning_run import LearningRun
from epo_jax.offline import OfflineRun
from epo_jax.playing import round_of
from epo_jax.report.console import bar, report_round, say
from epo_jax.report.metrics import describe_each
from epo_jax.reward import credit, judge
from epo_jax.rollout.play import episode_seed
from epo_jax.stepagent.run import StepAgentRun, check as check_stepagent
from epo_jax.trajectory import Trajectory, by_environment, write_jsonl

CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration: a file, with :PRESET where it has presets.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Check everything that can be checked in half a minute, say what would happen, write nothing.")


def main() -> None:
    """Runs `--config` to its end; a request to stop ends it early, saved, with the exit code that shells expect."""
    config = command_line.config_value(CONFIG)
    kinds = {"rounds": Run, "recorded": OfflineRun, "stepagent": StepAgentRun}
    if config.learn_from not in kinds:
        raise UserError(f"learn_from is {config.learn_from!r}: choose one of {', '.join(kinds)}.")
    preemption.check(config.preemption_notice)
    with joined(config.distributed) as stop, preemption.watched(config.preemption_notice, stop):
        if DRY_RUN.value:
            sys.exit(DryRun(config, check_stepagent if config.learn_from == "stepagent" else check_learning).everything())
        try:
            kinds[config.learn_from](config, stop).everything()
        except Stopped:
            sys.exit(130)


class Run(LearningRun):
    """A run of self-play: every round is played, judged, credited and learned from."""

    checked = (partners.check_actor, partners.check_judge, partners.check_evaluator)

    def check(self) -> None:
        check_learning(self.config, self.mesh)

    def make_learner(self) -> Learner:
        rounds = (round_of(self.config, self.task_sets, self.opponents, round) for round in range(self.config.rounds))
        counts = [sum(episode.trajectories for episode in episodes) for episodes in rounds]
        totals = {"warm_start": self.batches.steps_of_warm_start(), "rounds": self.batches.steps_of_rounds(counts)}
        return Learner(self.config, self.strategist, self.mesh, self.folder.checkpoints, self.stop, totals)

    # --- the phases -----------------------------------------------------------------------------------------------

    def warm_start(self) -> None:
        """Clones the expert's demonstrations: the same step as ever, every strategy with advantage 1."""
        steps, done = self.batches.steps_of_warm_start(), self.learner.position.steps
        rows: list[dict[str, float]] = []
        with bar("warm start", steps) as progress:
            progress.advance(amount=done)
            for metrics in self.learner.take_steps(self.batches.of_demonstrations(done), steps, on_step=progress.advance_reading):
                rows.append(metrics)
                taken = done + len(rows)
                if taken % 50 == 0 or taken == steps:
                    mean = {name: float(np.mean([row[name] for row in rows[-50:]])) for name in ("logprob", "entropy", "grad_norm")}
                    self.metrics.write("warm_start", taken, mean)
                    say(f"warm start {taken}/{steps}: log-probability of a demonstrated token {mean['logprob']:.3f}, {progress.seconds:.0f} s")
        self.learner.begin_rounds()
        self.playing.renew()

    def round(self) -> None:
        values: dict[str, float] = {}
        trajectories = self.play(values)
        self.assign_credit(trajectories, values)
        self.learn(trajectories, values)
        self._report_round(trajectories, values)

    def play(self, values: dict[str, float]) -> list[Trajectory]:
        """The round's episodes (playing.py); for the estimator bc, demonstrations of its number."""
        if self.config.credit.estimator != "bc":
            return self.playing.round(values)
        episodes = self.config.rollout.episodes
        start = self.config.warm_start.episodes + self.learner.position.round * episodes
        return list(itertools.islice(self.batches.demonstrations(start), episodes))

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
        if exchange.first():
            write_jsonl(self.folder.trajectories(self.learner.position.round), trajectories)
        values["seconds_judge"] = time.monotonic() - start
        values["judge_failed"] = counts.failed
        values["judge_picked_share"] = counts.picked_turns / counts.turns if counts.turns else math.nan

    def learn(self, trajectories: Sequence[Trajectory], values: dict[str, float]) -> None:
        """The round's optimizer steps; then the sampler gets the new weights. With `async_rounds`, the next round is played meanwhile."""
        position, start = self.learner.position, time.monotonic()
        if self.critic is not None:  # first, so that it reads the policy that played
            values |= self.critic.learn(trajectories, self.learner.exported_params(), position.round)
        batches = list(self.batches.of_round(trajectories, position.round, values))
        rows: list[dict[str, float]] = []
        self.playing.release()
        with self.playing.ahead(), bar(f"round {position.round + 1} learn", len(batches)) as progress:
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
        self.learner.end_round(played_ahead=self.playing.plays_ahead)
        self.playing.renew()

    # --- their parts ----------------------------------------------------------------------------------------------

    def _judge(self, trajectories: list[Trajectory]) -> judge.JudgeCounts:
        """Scores what is not scored yet. Whatever ends it early, what was scored by then is written and will not be asked again."""
        mine, counts, trouble = shares.of(trajectories), judge.JudgeCounts(), None
        with bar(f"round {self.learner.position.round + 1} judge", len(mine)) as progress:
            scoring = judge.judge_all(
                self.partners.judge,
                mine,
                concurrency=self.config.judge_api.concurrency,
                on_judged=lambda: progress.advance(self.partners.clients.note()),
                should_stop=lambda: self.stop.requested,
            )
            try:
                counts = asyncio.run(scoring)
            except UserError as error:
                trouble = error
                self.stop.call_off()
            finally:
                if exchange.count() == 1:
                    write_jsonl(self.folder.trajectories(self.learner.position.round), trajectories)
        if shares.judged(self.folder.trajectories(self.learner.position.round), trajectories, trouble, self.stop.requested):
            self.learner.save_and_stop()
        return judge.JudgeCounts(**shares.as_one(dataclasses.asdict(counts)))

    @functools.cached_property
    def critic(self) -> Critic | None:
        """Made when a round first needs it: a trunk of its own begins as a copy of what the warm start left."""
        if self.config.critic.trunk == "none":
            return None
        pad_id = self.strategist.tokenizer.pad_id
        return Critic(self.config, self.strategist.config, self.learner.exported_params(), pad_id, self.mesh, self.folder.path / "critic")

    def plan(self) -> str:
        config = self.config
        return (
            f"{config.rounds} rounds of {config.rollout.episodes} episodes; actor {self.partners.actor.name}, judge {self.partners.judge.name}, "
            f"estimator {config.credit.estimator}{' (permuted: a control)' if config.credit.permute else ''}"
        )

    def _report_round(self, trajectories: Sequence[Trajectory], values: dict[str, float]) -> None:
        values |= describe_each(trajectories) | shares.as_one(self.partners.clients.figures())
        values["compilations"] = self.playing.engine.stats["compilations"] + self.learner.compilations
        values["compile_seconds"] = compilation.seconds()
        round = self.learner.position.round
        self.metrics.write("round", round, values)
        report_round(round, self.config.rounds, values)
        self.page.write_or_say_why_not()


if __name__ == "__main__":
    command_line.run(main)
