"""The cycles of StepAgent: inspect, reflect, and every so often play the held-out tasks.

`config.rounds` cycles after an optional first stage that clones the expert (`config.warm_start`). Learner, checkpoints, evaluation, and what a run
leaves behind are as in self-play; a run that is stopped continues from the optimizer step at which it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax import partners, recorded, strategist as strategists
from epo_jax.batch import BranchedBatch, TrajectoryBatch
from epo_jax.check_learning import check_every_run
from epo_jax.errors import UserError
from epo_jax.hosts import exchange, shares
from epo_jax.learn import choices
from epo_jax.learn.critic import Critic
from epo_jax.learn.learner import Learner
from epo_jax.learning_run import LearningRun
from epo_jax.playing import round_of
from epo_jax.report.console import bar, say
from epo_jax.report.metrics import describe_each
from epo_jax.reward import credit
from epo_jax.rollout import demonstrations
from epo_jax.rollout.play import episode_seed
from epo_jax.stepagent import implicit, inspection, inverse
from epo_jax.stepagent.inverse import Discriminator
from epo_jax.trajectory import Trajectory, by_environment, read_jsonl, write_jsonl

REFLECTIONS = ("implicit", "inverse")
STATES = ("inspection", "episodes")
# What implicit reflection does not read, and the value of each at which nobody can think that it does.
NOT_OF_PAIRS = {
    "stepagent.reflect_on": "inspection", "credit.estimator": "reinforce", "critic.trunk": "none", "learn.normalisation": "turn",
    "learn.clip_low": 0.0, "learn.clip_high": 0.0, "learn.importance_cap": 0.0, "learn.kl_weight": 0.0, "learn.entropy_weight": 0.0,
}  # fmt: skip


class StepAgentRun(LearningRun):
    """A run of StepAgent: its rounds are cycles of inspection and reflection."""

    unit = "cycle"
    trained = "agent"

    def check(self) -> None:
        check(self.config, self.mesh)

    def read_data(self) -> None:
        self._recorded = self._read_recorded()

    def make_learner(self) -> Learner:
        config, settings, of_pairs = self.config, self.config.stepagent, None
        if settings.reflection == "implicit":
            of_pairs = functools.partial(implicit.preference_loss, beta=settings.beta, clone_weight=settings.clone_weight)
        totals = {"warm_start": self.batches.steps_of_warm_start(), "rounds": self.batches.steps_of_rounds(self._trajectories_of_cycles())}
        reference = settings.reference if of_pairs else None
        return Learner(config, self.strategist, self.mesh, self.folder.checkpoints, self.stop, totals, of_pairs, reference)

    # --- the phases -----------------------------------------------------------------------------------------------

    def warm_start(self) -> None:
        """The first stage: the expert's actions, cloned by the same step as ever, every one with advantage 1."""
        steps, done, settings = self.batches.steps_of_warm_start(), self.learner.position.steps, self.config.warm_start
        size = settings.rows * settings.accumulation
        with bar("cloning the expert", steps) as progress:
            progress.advance(amount=done)
            stream = self._experts(done * size)
            batches = (self.batches.batched(list(itertools.islice(stream, size)), settings)[0][0] for _ in itertools.count())
            rows = list(self.learner.take_steps(batches, steps, on_step=progress.advance_reading))
            if rows:
                mean = {name: float(np.mean([row[name] for row in rows[-50:]])) for name in ("logprob", "entropy", "grad_norm")}
                self.metrics.write("warm_start", steps, mean)
                say(f"cloned in {steps} steps: log-probability of an expert's token {mean['logprob']:.3f}, {progress.seconds:.0f} s")
        self.learner.begin_rounds()
        self.playing.renew()

    def round(self) -> None:
        values: dict[str, float] = {}
        found, implicitly = self.inspect(values), self.config.stepagent.reflection == "implicit"
        batches = self.reflect_implicitly(found) if implicitly else self.reflect_by_reward(found, values)
        self.learn(batches, values)
        self._report_cycle(values)

    def inspect(self, values: dict[str, float]) -> list[Trajectory]:
        """The cycle's expert trajectories with what the policy would do. They are kept; those that an earlier start left with the same weights are
        read back."""
        cycle, settings, start = self.learner.position.round, self.config.stepagent, time.monotonic()
        path = self.folder.path / "inspections" / f"cycle_{cycle:03d}.jsonl"
        kept = exchange.by_first(lambda: _kept(path, self.learner.version) is not None)
        if kept:
            experts = list(read_jsonl(path))
        else:
            experts = list(itertools.islice(self._experts(self.config.warm_start.episodes + cycle * settings.experts), settings.experts))
            for trajectory in experts:
                trajectory.round, trajectory.weights_version = cycle, self.learner.version
            sampling, mine = strategists.sampling(self.config, self.config.rollout.temperature), shares.of(experts)
            with bar(f"cycle {cycle + 1} inspect", len(mine)) as progress:
                asyncio.run(inspection.inspect(
                    self.playing.engine, self.strategist.conversation, mine, sampling, at_once=self.config.rollout.slots,
                    should_stop=lambda: self.stop.requested, on_inspected=progress.advance,
                ))  # fmt: skip
            if not inspection.exchange_inspected(experts):
                self.learner.save_and_stop()
            exchange.by_first(lambda: write_jsonl(path, experts))
        found = inspection.inspected(experts, self.config.learn.max_length)
        differing = np.concatenate([np.zeros(0), *(inspection.differing(trajectory) for trajectory in found)])
        values |= {
            "states": len(differing),
            "states_left_out": sum(len(trajectory.turns) for trajectory in experts) - len(differing),
            "agreement": 1.0 - float(np.mean(differing)) if differing.size else math.nan,
            "seconds_inspect": time.monotonic() - start,
        }
        return found

    def reflect_implicitly(self, inspected: Sequence[Trajectory]) -> list[BranchedBatch]:
        """The cycle's optimizer steps on pairs of actions."""
        return [batch for mixed in self._epochs(inspected) for batch in implicit.batches(mixed, **self._rows_that_branch())]

    def reflect_by_reward(self, inspected: Sequence[Trajectory], values: dict[str, float]) -> list[TrajectoryBatch] | list[BranchedBatch]:
        """Discriminator, its rewards, the critic, and the cycle's PPO steps, on the inspected actions or on episodes of the policy's own."""
        cycle, settings = self.learner.position.round, self.config.credit
        values |= self.discriminator.learn(inspected, cycle)
        trajectories = self._states(inspected, values)
        self.discriminator.reward(trajectories)
        self.critic.value(trajectories, self.learner.exported_params())
        for group in by_environment(trajectories).values():
            credit.estimate("ppo", group, **credit.options_of("ppo", settings.to_dict()))
        of_states = self.config.stepagent.reflect_on == "inspection"
        record = inspection.states_of(trajectories) if of_states else trajectories
        exchange.by_first(lambda: write_jsonl(self.folder.trajectories(cycle), record))
        values |= self.critic.learn(trajectories, self.learner.exported_params(), cycle)
        rewards = [turn.process_reward for one in trajectories if one.masked is None for turn in one.turns]
        values |= {"step_reward": float(np.mean(rewards)), "step_reward_deviation": float(np.std(rewards))}
        if of_states:
            shape = self._rows_that_branch() | {"clone_weight": self.config.stepagent.clone_weight}
            return [batch for mixed in self._epochs(trajectories) for batch in inverse.batches(mixed, **shape)]
        values |= describe_each(trajectories)
        return list(self.batches.of_round(trajectories, cycle, values))

    def learn(self, batches: Sequence[TrajectoryBatch] | Sequence[BranchedBatch], values: dict[str, float]) -> None:
        """The cycle's optimizer steps; then the sampler gets the new weights."""
        position, start, rows = self.learner.position, time.monotonic(), []
        done = position.steps
        self.playing.release()
        with bar(f"cycle {position.round + 1} reflect", len(batches)) as progress:
            progress.advance(amount=done)
            for metrics in self.learner.take_steps(iter(batches[done:]), len(batches), on_step=progress.advance_reading):
                rows.append(metrics)
                self.metrics.write("step", int(metrics["optimizer_step"]), metrics)
        if rows:
            values |= {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "grad_norm", "entropy", "kl")}
            values["logprob_gap"] = rows[0]["logprob_gap"] if done == 0 else math.nan
        values |= {"steps": len(batches), "seconds_learn": time.monotonic() - start}
        self.learner.end_round()
        self.playing.renew()

    # --- their parts ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def discriminator(self) -> Discriminator:
        """Made when a cycle first needs it: its trunk begins as a copy of the clone's."""
        return self._scalar_model(Discriminator, "discriminator")

    @functools.cached_property
    def critic(self) -> Critic:
        return self._scalar_model(Critic, "critic")

    def _scalar_model(self, kind, name: str):
        pad_id = self.strategist.tokenizer.pad_id
        return kind(self.config, self.strategist.config, self.learner.exported_params(), pad_id, self.mesh, self.folder.path / name)

    def _epochs(self, trajectories: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
        """The cycle's trajectories once for each epoch, in a seeded order."""
        for epoch in range(self.config.learn.epochs):
            order = np.random.default_rng([self.config.seed, self.learner.position.round, epoch]).permutation(len(trajectories))
            yield [trajectories[index] for index in order]

    def _rows_that_branch(self) -> dict[str, Any]:
        """The shape of an optimizer step on inspected trajectories."""
        learn = self.config.learn
        return {
            "rows": learn.rows, "accumulation": learn.accumulation,
            "lengths": sorted(learn.length_buckets), "pad_id": self.strategist.tokenizer.pad_id,
        }  # fmt: skip

    def _states(self, inspected: list[Trajectory], values: dict[str, float]) -> list[Trajectory]:
        """What PPO learns from: what was inspected, or episodes of the policy's own."""
        if self.config.stepagent.reflect_on == "episodes":
            return self.playing.round(values)
        turns = (turn for trajectory in inspected for turn in trajectory.turns)
        for turn, record in zip(turns, _kept(self.folder.trajectories(self.learner.position.round), self.learner.version) or []):
            turn.values = record.turns[0].values  # what the critic said before it learned, should this start have come after
        return inspected

    def _experts(self, start: int) -> Iterator[Trajectory]:
        """Expert trajectories with tokens from the `start`-th on, each made anew: the recorded ones over and over, or the environments' experts'."""
        if self._recorded:
            return (_another(self._recorded[index % len(self._recorded)], self.config.seed, index) for index in itertools.count(start))
        return demonstrations.demonstrations(self.task_sets, start=start, seed=self.config.seed, conversation=self.strategist.conversation)

    def _read_recorded(self) -> list[Trajectory]:
        config = self.config
        if not config.data:
            return []
        file = recorded.read(config.data, recorded.allowed_share(config.allow_malformed), scored=False)
        found, cut = recorded.with_tokens(file.trajectories, self.strategist.conversation, max_length=config.learn.max_length, overlong="drop")
        recorded.say_cut(cut, config.learn.max_length, "drop")
        if not found:
            raise UserError(f"no conversation of {config.data} fits into {config.learn.max_length} tokens: give a larger --config.learn.max_length.")
        credit.estimate("bc", found)
        return found

    def _trajectories_of_cycles(self) -> list[int]:
        """How many each cycle learns from, at most."""
        cycles, settings = range(self.config.rounds), self.config.stepagent
        if settings.reflection == "implicit" or settings.reflect_on == "inspection":
            return [settings.experts for _ in cycles]
        return [sum(episode.trajectories for episode in round_of(self.config, self.task_sets, self.opponents, cycle)) for cycle in cycles]

    def plan(self) -> str:
        config, settings = self.config, self.config.stepagent
        experts = f"conversations of {config.data}" if config.data else "the environments' experts"
        return (
            f"experts: {experts}, {config.warm_start.episodes} trajectories cloned, then "
            f"{config.rounds} cycles of {settings.experts} inspected, {settings.reflection} reflection"
        )

    def _report_cycle(self, values: dict[str, float]) -> None:
        cycle = self.learner.position.round
        self.metrics.write("round", cycle, values)
        names = {
            "states": "{:.0f} states inspected", "left_out": "{:.0f} more do not fit", "agreement": "the policy says what the expert does at {:.1%}",
            "discriminator_right_on_expert": "discriminator right on the expert's {:.1%}", "discriminator_right_on_policy": "on the policy's {:.1%}",
            "discriminator_steps": "{:.0f} steps of it", "step_reward": "reward of a step {:.3f}",
            "critic_explained": "explained by the critic {:.1%}",
            "loss": "loss {:.4f}", "grad_norm": "gradient norm {:.3f}", "seconds_inspect": "inspection {:.0f} s", "seconds_learn": "steps {:.0f} s",
        }  # fmt: skip
        values = values | {"left_out": values["states_left_out"] or math.nan}
        told = ", ".join(pattern.format(values[name]) for name, pattern in names.items() if name in values and not math.isnan(values[name]))
        say(f"cycle {cycle} of {self.config.rounds}: {told}")
        self.page.write_or_say_why_not()


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises `UserError` for choices that are not there, contradict each other, or would not be read."""
    if mesh.shape["sequence"] > 1:
        raise UserError("StepAgent's rows branch, and rows that do cannot be split over devices: set mesh.sequence to 1.")
    settings, guards = config.stepagent, config.stepagent.discriminator
    known = {"reflection": REFLECTIONS, "reference": choices.REFERENCES[1:], "reflect_on": STATES, "reward": inverse.REWARDS}
    for name, values in known.items():
        if settings[name] not in values:
            raise UserError(f"stepagent.{name} is {settings[name]!r}: choose one of {', '.join(values)}.")
    if config.actor != "policy":
        raise UserError(f"actor is {config.actor}: in StepAgent the policy acts itself, set it to policy.")
    if config.judge in partners.API_JUDGES:
        raise UserError(f"judge is {config.judge}: in StepAgent the expert judges, and no model is asked; set it to progress.")
    if config.async_rounds:
        raise UserError("async_rounds plays rounds ahead, and StepAgent's cycles inspect what the present weights do: set it to 0.")
    if config.evaluator != "none":
        raise UserError(f"evaluator is {config.evaluator}: StepAgent's episodes are scored by the environments alone, set it to none.")
    if settings.experts < 1 or settings.beta < 0 or settings.clone_weight < 0:
        raise UserError("stepagent.experts must be positive, beta and clone_weight at least 0.")
    if settings.reflection == "implicit" and not settings.beta + settings.clone_weight:
        raise UserError("stepagent.beta and clone_weight are both 0: there is nothing to learn from.")
    if not 0.0 <= guards.label_smoothing < 0.5 or guards.steps < 0:
        raise UserError("stepagent.discriminator.label_smoothing must be at least 0 and below 0.5, and steps at least 0.")
    check_every_run(config, mesh)
    unread = {"learn.packing": False} if settings.reflect_on == "inspection" else {}
    for name, default in (unread | NOT_OF_PAIRS if settings.reflection == "implicit" else unread).items():
        value = functools.reduce(lambda section, part: section[part], name.split("."), config)
        if value != default:
            raise UserError(f"{name} is {value}, which {settings.reflection} reflection does not read: leave it at {default}.")
    if config.credit.permute:
        raise UserError("credit.permute is not in StepAgent, whose control is stepagent.beta=0: set it to False.")
    if settings.reflection == "inverse":
        if config.credit.estimator != "ppo":
            raise UserError(f"credit.estimator is {config.credit.estimator}: inverse reflection learns by PPO, set it to ppo.")
        if not config.credit.process_weight:
            raise UserError("credit.process_weight is 0: the discriminator's reward is the process reward, give it a weight.")
        if settings.reflect_on == "inspection" and config.credit.outcome_weight:
            raise UserError("the outcome of an inspected trajectory is the expert's, not what the policy's actions led to: set credit.outcome_weight to 0.0.")
        if settings.reflect_on == "inspection" and (config.credit.discount, config.credit.gae, config.learn.normalisation) != (0.0, "turn", "turn"):
            raise UserError("nothing follows an inspected action: set credit.discount to 0.0, credit.gae and learn.normalisation to turn.")
        if settings.reflect_on == "episodes" and settings.clone_weight:
            raise UserError("stepagent.clone_weight is of the expert's actions at inspected states: set it to 0.0 where episodes are reflected on.")


def _another(found: Trajectory, seed: int, index: int) -> Trajectory:
    """A recorded trajectory to inspect for itself: what is set in it stays in it, and its seed is of the place where it comes up."""
    turns = [dataclasses.replace(turn) for turn in found.turns]
    return dataclasses.replace(found, turns=turns, extra=dict(found.extra), seed=episode_seed(seed, "inspect", index))


def _kept(path: Path, version: str) -> list[Trajectory] | None:
    """What an earlier start left in a file with the same weights; None where there is nothing."""
    kept = list(read_jsonl(path)) if path.exists() else []
    return kept if kept and all(trajectory.weights_version == version for trajectory in kept) else None
