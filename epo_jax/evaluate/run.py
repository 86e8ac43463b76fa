"""One evaluation: what it is made of, the play, and the figures at its end."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

import envs
from epo_jax import partners, self_play, strategist as strategists
from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.evaluate import results
from epo_jax.evaluate.folder import EvaluationFolder, Row, write_table
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.learn.step import dtype_of
from epo_jax.model.fingerprint import fingerprint
from epo_jax.report.console import say
from epo_jax.rollout import alone, demonstrations, opponents, tasks
from epo_jax.rollout.actors import Actor
from epo_jax.rollout.alone import Silence
from epo_jax.rollout.keep import play_and_keep
from epo_jax.rollout.play import Player, episodes_of_evaluation
from epo_jax.rollout.seat import Adviser
from epo_jax.rollout.tasks import TaskSet
from epo_jax.run_folder import MAY_CHANGE, flatten, provenance, run_of
from epo_jax.strategist import Strategist
from epo_jax.trajectory import write_jsonl

WITHOUT_STRATEGIST = alone.MODES
MODES = (*WITHOUT_STRATEGIST, "vanilla", "trained")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the configuration.

    strategist: a mode: trained (the weights of `checkpoint`) | vanilla (config.model.source, untrained) | none (the actor alone) |
    react (the actor writes its own strategy first). checkpoint, step: see strategist.from_checkpoint. split: a name for every environment,
    "env=name,…", or "" for the configuration's. tasks: of each environment, None: all of the split. repeats: episodes a task.
    output: the folder, "": one below runs/evaluation that is named after strategist and actor. partner: who sits at the other seat, where there
    are two: a name of rollout/opponents.py but "earlier", "": config.self_play.evaluate.
    """

    strategist: str = "trained"
    checkpoint: str = ""
    step: int | None = None
    split: str = ""
    tasks: int | None = None
    repeats: int = 1
    output: str = ""
    partner: str = ""


class Evaluation:
    """Reads or makes everything, and refuses what cannot be evaluated, before anything is written."""

    def __init__(self, config: ConfigDict, options: Options, stop: StopRequest) -> None:
        self.options, self.stop = options, stop
        self.config = config = _with_options(config, options)
        _, self.task_sets, _ = all_or_what_is_missing(
            lambda: _find_weights(config, options),
            lambda: tasks.load(config, train=_makes_tokenizer(config, options)),
            lambda: _check_actor(config, options),
        )
        partners.check_scored(config, self.task_sets)
        self.mesh = strategists.make_run_mesh(config)
        self.strategist = self._load_strategist()
        self.untrained = self._load_untrained_partner()
        self.what = self._what()
        engine, conversation = self._engine_and_conversation()
        record = {"config": flatten(config.to_dict()), **provenance(config)}
        self.folder = EvaluationFolder.open(pathlib.Path(options.output or self._usual_output()), self.what, record)
        self.clients = partners.ApiClients(config, self.folder.path, partners.api_roles(config, "actor", "evaluator"))
        actor = partners.make_actor(config, self.clients, None, self.mesh)
        self.evaluator = partners.make_evaluator(config, self.clients)
        alone = options.strategist in WITHOUT_STRATEGIST
        self.actor = actor.without_strategist(options.strategist) if alone else actor
        self.player = Player(
            engine=engine,
            conversation=conversation,
            actor=self.actor,
            sampling=strategists.sampling(config, config.evaluate.temperature),
            round=0,
            weights_version=engine.weights_version,
            others=self._others(actor),
            evaluator=self.evaluator,
        )

    def everything(self) -> list[Row]:
        """Plays what has not been played, shows the figures and writes them; a request to stop ends it early with `Stopped`."""
        self._say_plan()
        try:
            for task_set in self.task_sets:
                self._play(task_set)
        finally:
            for adviser in (self.player, *self.player.others.values()):
                adviser.engine.shutdown()
            partners.close_actor(self.actor)
            self.clients.close()
        played = self.folder.read_episodes()
        found, by_scenario = results.rows(self.folder, played), results.scenario_rows(self.folder, played)
        write_table(self.folder.path / "results", {"what": self.what}, found)
        results.show(self.folder, found)
        if by_scenario:
            write_table(self.folder.path / "scenarios", {"what": self.what}, by_scenario)
            results.show_scenarios(by_scenario)
        say(f"figures: {self.folder.path / 'results.json'} and .csv; every episode: {self.folder.path / 'episodes'}")
        if any(row["masked"] for row in found):
            say("the same command plays the episodes again that failed to be played")
        return found

    # --- its parts --------------------------------------------------------------------------------------------------

    def _play(self, task_set: TaskSet) -> None:
        """One environment. Its file has the episodes in the order in which they ended until all have, then in the order of their tasks."""
        path, start, money, fresh = self.folder.episodes(task_set.environment), time.monotonic(), self._money, True
        try:
            trajectories, figures = play_and_keep(
                f"{task_set.environment} {task_set.eval_split}",
                self.player,
                episodes_of_evaluation([task_set], self.options.repeats, self.config.self_play.evaluate),
                path,
                at_once=self.config.rollout.slots,
                should_stop=lambda: self.stop.requested,
                note=self.clients.note,
            )
            fresh = figures["episodes_per_second"] > 0
        finally:
            if fresh:
                spent = {"seconds": time.monotonic() - start, "money": self._money - money}
                self.folder.add_start({"environment": task_set.environment, **spent, **provenance(self.config)})
        if self.stop.requested:
            say(f"stopped: what has ended is in {self.folder.path}. The same command continues.")
            raise Stopped
        write_jsonl(path, trajectories)

    @property
    def _money(self) -> float:
        return self.actor.money + (self.evaluator.money if self.evaluator else 0.0)

    def _engine_and_conversation(self) -> tuple[Any, Any]:
        if self.strategist is None:
            silence = Silence()
            return silence, silence
        engine = strategists.engine(self.strategist, self.strategist.params, self.config, self.mesh, self.what["strategist"]["weights"])
        return engine, self.strategist.conversation

    def _others(self, actor: Actor) -> dict[str, Adviser]:
        """Who sits at the other seat, where it is neither the strategist nor the environment's program."""
        config, name = self.config, self.config.self_play.evaluate
        sampling = strategists.sampling(config, config.evaluate.temperature)
        if not self._converses or name in (opponents.SELF, opponents.SCRIPTED):
            return {}
        if self.untrained is None:
            return {name: self_play.alone(actor, name, sampling)}
        version = self.what["partner"]["weights"]
        engine = strategists.engine(self.untrained, self.untrained.params, config, self.mesh, version)
        return {name: Adviser(name, engine, self.untrained.conversation, actor, sampling, version)}

    @property
    def _converses(self) -> bool:
        return any(task_set.two_seats for task_set in self.task_sets)

    def _load_strategist(self) -> Strategist | None:
        """None in the modes without one."""
        config, options = self.config, self.options
        dtype = dtype_of(config.model.compute_dtype)
        if options.strategist == "trained":
            return strategists.from_checkpoint(options.checkpoint, options.step, dtype, self.mesh)
        if options.strategist == "vanilla":
            return self._load_untrained()
        return None

    def _load_untrained_partner(self) -> Strategist | None:
        return self._load_untrained() if self._converses and self.config.self_play.evaluate == opponents.UNTRAINED else None

    def _load_untrained(self) -> Strategist:
        """What the run that is evaluated began its rounds with, where it kept that; else what the configuration names."""
        config, dtype = self.config, dtype_of(self.config.model.compute_dtype)
        kept = _kept_start(self.options)
        if kept is not None:
            return strategists.from_checkpoint(str(kept), dtype=dtype, mesh=self.mesh)
        found = strategists.load(config, self.mesh, lambda: demonstrations.texts(self.task_sets, config.model.architecture.tokenizer_games))
        return dataclasses.replace(found, params=jax.tree.map(lambda x: x.astype(dtype), found.params))

    def _what(self) -> dict[str, Any]:
        """What is evaluated: all that an episode depends on."""
        config, options, rollout = self.config, self.options, self.config.rollout
        strategist: dict[str, Any] = {"mode": options.strategist, "name": options.strategist}
        if self.strategist is not None:
            step = self.strategist.step
            name = options.checkpoint if options.strategist == "trained" else str(_kept_start(options) or config.model.source)
            strategist["name"] = name if step is None else f"{name} (checkpoint {step})"
            strategist["weights"] = fingerprint(self.strategist.params)
        partner = {"name": config.self_play.evaluate}
        if self.untrained is not None:
            partner["weights"] = fingerprint(self.untrained.params)
        return {
            "strategist": strategist,
            **({"partner": partner} if self._converses else {}),
            "actor": _actor_name(config, options),
            "actor_settings": _settings(config, "actor_", "local_actor."),  # of those actors that have any
            **({"evaluator": config.evaluator, "evaluator_settings": _settings(config, "evaluator_api.")} if config.evaluator != "none" else {}),
            "environments": {
                task_set.environment: {
                    "split": task_set.eval_split,
                    "tasks": len(task_set.held_out),
                    "max_turns": task_set.max_turns,
                    **({"max_words": task_set.max_words} if task_set.max_words else {}),
                    "prompt": config.environments[task_set.environment].prompt,
                    "options": task_set.options,
                }
                for task_set in self.task_sets
            },
            "repeats": options.repeats,
            "sampling": {
                "temperature": config.evaluate.temperature,
                "top_k": rollout.top_k,
                "top_p": rollout.top_p,
                "max_strategy_tokens": rollout.max_strategy_tokens,
                "max_context": rollout.max_context,
                "compute_dtype": config.model.compute_dtype,
            },
        }

    def _usual_output(self) -> str:
        strategist = self.what["strategist"]
        words = strategist["name"] if strategist["mode"] in ("trained", *WITHOUT_STRATEGIST) else f"vanilla-{strategist['name']}"
        partner = f"_against-{self.what['partner']['name']}" if self._converses else ""
        return "runs/evaluation/" + re.sub(r"[^\w.-]+", "-", f"{words}_{self.what['actor']}{partner}").strip("-.")

    def _say_plan(self) -> None:
        who = results.strategist(self.folder)
        if self.strategist is not None:
            who += f" ({self.strategist.config.num_params / 1e6:.1f} M parameters, weights {self.what['strategist']['weights']})"
        actor = self.what["actor"] + (f", the other seat {self.what['partner']['name']}" if self._converses else "")
        played = " and ".join(f"{len(each.held_out)} {each.environment} tasks of {each.eval_split}" for each in self.task_sets)
        again = f", {self.options.repeats} episodes each" if self.options.repeats > 1 else ""
        say(
            f"{who}, actor {actor}: {played}{again}, temperature {self.config.evaluate.temperature:g}; "
            f"{'continues' if self.folder.resumed else 'writes'} {self.folder.path}"
        )


def check(config: ConfigDict, options: Options) -> None:
    """Raises `UserError` for what `Evaluation` would refuse, but for tasks and weights that cannot be read. Nothing is written or loaded."""
    config = _with_options(config, options)
    all_or_what_is_missing(lambda: _find_weights(config, options), lambda: _check_actor(config, options))


# --- what the command line says, checked ------------------------------------------------------------------------------


def _with_options(config: ConfigDict, options: Options) -> ConfigDict:
    """The configuration with the tasks and splits of `options`. Raises `UserError` for options that make no sense."""
    if options.strategist not in MODES:
        raise UserError(f"there is no mode --strategist={options.strategist}: choose one of {', '.join(MODES)}.")
    for name, value in (("tasks", options.tasks), ("repeats", options.repeats)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: give 1 or more.")
    if not (math.isfinite(config.evaluate.temperature) and config.evaluate.temperature >= 0):
        raise UserError(f"the temperature is {config.evaluate.temperature}: give 0 (always the likeliest token) or more.")
    config = config.copy_and_resolve_references()
    config.evaluate.tasks = options.tasks or sys.maxsize
    config.self_play.evaluate = options.partner or config.self_play.evaluate
    if config.local_actor.source in partners.INITIAL:  # what a run's own strategist was before training
        config.local_actor.source = config.model.source
    for environment, split in _splits(options.split, _played(config)).items():
        config.environments[environment].eval_split = split
    return config


def _played(config: ConfigDict) -> list[str]:
    return [name for name, settings in config.environments.items() if settings.share]


def _splits(told: str, environments: list[str]) -> dict[str, str]:
    if "=" not in told:
        return dict.fromkeys(environments, told) if told else {}
    pairs = [pair.partition("=") for pair in told.split(",")]
    for environment, _, split in pairs:
        if environment not in environments or not split:
            raise UserError(f"--split={told} is not understood: give one name, or ENVIRONMENT=NAME,… of {', '.join(sorted(environments))}.")
    return {environment: split for environment, _, split in pairs}


def _check_actor(config: ConfigDict, options: Options) -> None:
    partners.check_actor(config)
    partners.check_evaluator(config)
    played = _played(config)
    needs_strategy = partners.ACTORS[config.actor].needs_strategy
    if options.strategist in WITHOUT_STRATEGIST:
        alone.check_alone(config.actor, needs_strategy, options.strategist, played)
    if set(played) & set(envs.TWO_SEATS):
        self_play.check(config, set(played) & set(envs.TWO_SEATS), needs_strategy)


def _settings(config: ConfigDict, *sections: str) -> dict[str, Any]:
    """The fields of these sections that change what is said."""
    return {name: value for name, value in flatten(config.to_dict()).items() if name.startswith(sections) and name not in MAY_CHANGE}


def _actor_name(config: ConfigDict, options: Options) -> str:
    name = partners.ACTORS[config.actor].name(config)
    return f"{name} (thinking first)" if options.strategist == "react" else name


def _find_weights(config: ConfigDict, options: Options) -> None:
    """Raises `UserError` where the weights of the mode are not to be found."""
    if options.strategist == "vanilla" and _kept_start(options) is None:
        strategists.find(config.model.source)
    if options.strategist != "trained":
        return
    given = options.checkpoint
    if not given:
        raise UserError("say which weights to evaluate: --checkpoint=runs/alfshop, or --strategist=vanilla for the configuration's, untrained.")
    if strategists.is_run(given):
        return
    if (pathlib.Path(given) / "trajectories").is_dir():
        raise UserError(f"the run in {given} has saved no checkpoint yet: wait for its first, or evaluate --strategist=vanilla.")
    if given == "random" or (not given.startswith("gguf:") and given != "mini" and not (pathlib.Path(given) / "config.json").is_file()):
        raise UserError(f"no checkpoint at {given}: give a run's folder (runs/alfshop), a Hugging Face folder, gguf:PACKAGE_OR_FILE, or mini.")
    strategists.find(given)


def _kept_start(options: Options) -> pathlib.Path | None:
    """The weights that the run of --checkpoint began its rounds with, where it kept them."""
    if not options.checkpoint or not strategists.is_run(options.checkpoint):
        return None
    start = self_play.start_of(run_of(pathlib.Path(options.checkpoint)))
    return start if start.is_dir() else None


def _makes_tokenizer(config: ConfigDict, options: Options) -> bool:
    """Whether training tasks are needed: an untrained random strategist's tokenizer is made from their demonstrations."""
    untrained = options.strategist == "vanilla" or config.self_play.evaluate == opponents.UNTRAINED
    return untrained and config.model.source == "random" and _kept_start(options) is None
