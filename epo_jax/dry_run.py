"""What a run would do, and whether it could: everything that can be checked in half a minute, with nothing written.

    python -m epo_jax.train --config=configs/alfshop.py --dry_run

Weights are found and their headers read, tasks counted, keys looked for, the mesh made, bytes on each device and on the disk worked out, and an
episode of every environment is played by its expert with the literal actor (no model is loaded, and no server is asked). Every problem is told, in
one sentence each; the exit code is 2 where there are any. What only shows while a model runs (a key that is refused, a loss that is no number) is
not seen here.
"""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from envs.sotopia.environment import REAL
from epo_jax import forecast, memory_plan, partners, recorded, run_folder, self_play, strategist as strategists
from epo_jax.batch import check_buckets
from epo_jax.check_learning import check_numbers
from epo_jax.errors import UserError
from epo_jax.forecast import Calls, Shape
from epo_jax.hosts.arrays import own_mesh
from epo_jax.mesh import check_divides, check_rows, describe
from epo_jax.model import gguf_weights, hf_weights, lora
from epo_jax.model.config import LlamaConfig
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.report import wandb_run
from epo_jax.report.console import say
from epo_jax.rollout import opponents, tasks
from epo_jax.rollout.demonstrations import demonstrate
from epo_jax.rollout.play import episodes_of_evaluation, episodes_of_round
from epo_jax.rollout.tasks import TaskSet
from epo_jax.trajectory import Trajectory

PLAYED = 3  # episodes of each environment, of which the first is told
LARGE_VOCABULARY = 30_000  # tokens; the tokenizer of a smaller model says little about how a large one counts
CHECKPOINT_BYTES = 12  # a parameter: float32 and two moments
EXPORT_BYTES = 4
LINE_BYTES = 40  # of an episode's line in trajectories/, for each token: ids, log-probabilities, text (measured: 30 to 40)
ENOUGH = 0.8  # of a device's memory


class DryRun:
    """The checks in their order; `problems` has what was found wrong by then, each sentence once."""

    def __init__(self, config: ConfigDict, check_learning: Callable[[ConfigDict, Mesh], None]) -> None:
        """check_learning: what the main command checks of a configuration and a mesh before it starts; raises `UserError`."""
        self._config, self._check_learning = config, check_learning
        self._recorded, self._stepagent = config.learn_from == "recorded", config.learn_from == "stepagent"
        self.problems: list[str] = []
        self._model: LlamaConfig | None = None
        self._tokenizer: Tokenizer | None = None
        self._mesh: Mesh | None = None
        self._task_sets: list[TaskSet] = []
        self._shapes: dict[str, Shape] = {}
        self._tokens_an_episode = 0.0

    def everything(self) -> int:
        """All checks, told as they are made; the exit code."""
        say("dry run: nothing is written")
        self._try(lambda: check_numbers(self._config))
        if not self.problems:  # else what follows would count with them
            self._look()
        for number, problem in enumerate(self.problems, 1):
            say(f"problem {number}: {problem.rstrip('.')}.")
        found = len(self.problems)
        say("no problem was found" if not found else "1 problem was found" if found == 1 else f"{found} problems were found")
        return 2 if self.problems else 0

    def _look(self) -> None:
        self._folder()
        self._weights()
        if self._recorded or (self._stepagent and self._config.data):
            self._conversations()
        if not self._recorded:
            self._data()
            self._partners()
            self._play()
        self._learning()
        self._memory()
        self._rounds()
        self._disk()

    def _try(self, check: Callable[[], Any]) -> Any:
        """What `check` returns; None where it raises `UserError`, whose sentences are kept."""
        try:
            return check()
        except UserError as error:
            for part in error.parts or (str(error),):
                self._problem(part)
            return None

    def _problem(self, sentence: str) -> None:
        if sentence.rstrip(".") not in (known.rstrip(".") for known in self.problems):
            self.problems.append(sentence)

    # --- what is there ----------------------------------------------------------------------------------------------

    def _folder(self) -> None:
        self._try(lambda: wandb_run.check(self._config))
        found = self._try(lambda: run_folder.examine(self._config))
        if found is not None:
            told("folder", f"{found[0]}, {'which holds this run: it would be continued' if found[1] else 'which would be made'}")

    def _weights(self) -> None:
        source = self._config.model.source
        if source == "random":
            architecture = self._config.model.architecture
            told("weights", f"random, {architecture.num_layers} layers of {architecture.hidden_size}, with a tokenizer made from the data")
            mini = Tokenizer.load(strategists.MINI)
            self._model = strategists.random_config(architecture, mini)
            return
        path = self._try(lambda: strategists.find(source))
        if path is None:
            return
        found = self._try(lambda: (gguf_weights if path.is_file() else hf_weights).examine(path))
        self._tokenizer = self._try(lambda: Tokenizer(gguf_weights.tokenizer(path)) if path.is_file() else Tokenizer.load(path))
        if found is not None:
            self._model, size = found
            told("weights", f"{path}: {self._model.num_params / 1e6:,.1f} M parameters, {told_bytes(size)} on disk")
            longest = self._config.rollout.max_context
            if not self._recorded and longest > self._model.max_positions:
                self._problem(f"rollout.max_context is {longest}, and the model knows {self._model.max_positions} positions: give at most that.")

    def _conversations(self) -> None:
        config = self._config
        file = self._try(lambda: recorded.read(config.data, recorded.allowed_share(config.allow_malformed), scored=self._recorded))
        if file is not None:
            told("data", f"{self._config.data}: {len(file.trajectories)} conversations, {len(file.malformed)} malformed rows")
            self._conversation_count = len(file.trajectories)

    def _data(self) -> None:
        self._task_sets = self._try(lambda: tasks.load(self._config)) or []
        for task_set in self._task_sets:
            told("data", str(task_set))

    def _partners(self) -> None:
        config = self._config
        for check in (partners.check_actor, partners.check_judge, partners.check_evaluator):
            self._try(lambda check=check: check(config))
        self._try(lambda: partners.check_scored(config, self._task_sets))
        if any(task_set.two_seats for task_set in self._task_sets) and config.actor in partners.ACTORS:
            names, needs = [task_set.environment for task_set in self._task_sets], partners.ACTORS[config.actor].needs_strategy
            self._try(lambda: self_play.check(config, names, needs))
        roles = partners.api_roles(config, "actor", "judge", "evaluator")
        keys = sorted({config[section].api_key_variable for section in roles.values()})
        needed = f"keys are read from {', '.join(keys)}" if keys else "no key is needed"
        told("partners", f"actor {config.actor}, judge {config.judge}, evaluator {config.evaluator}; {needed}")

    def _play(self) -> None:
        """One episode of each environment is told; what they say is what costs are forecast from."""
        conversation = self._try(lambda: ConversationFormat(self._tokenizer or Tokenizer.load(strategists.MINI)))
        if conversation is None:
            return
        means = []
        for task_set in self._task_sets:
            if task_set.two_seats and task_set.train and task_set.train[0].combination.kind == REAL:
                told("played", f"{task_set.environment}: nothing, as no rule scores its combinations and no expert plays them")
                continue
            played = self._try(lambda task_set=task_set: [demonstrate(task_set, task, 0, conversation) for task in task_set.train[:PLAYED]])
            played = [each for each in played or [] if each.turns]
            if not played:
                continue
            if partners.api_roles(self._config, "actor", "judge", "evaluator"):
                name, judge = task_set.environment, self._config.judge
                shape = self._try(lambda name=name, played=played: forecast.shape(name, played, self._count, judge))
                self._shapes |= {name: shape} if shape else {}
            means.append(task_set.share * sum(map(_length, played)) / len(played))
            self._say_played(played[0], "the expert" if task_set.prompts.acts else "expert and literal actor")
        self._tokens_an_episode = math.fsum(means)

    def _say_played(self, episode: Trajectory, who: str) -> None:
        length, room = _length(episode), self._config.rollout.max_context
        said = sum(len(turn.tokens) for turn in episode.turns) / len(episode.turns)
        model = "" if self._tokenizer else " of the mini strategist"
        over = f", more than rollout.max_context = {room}: such an episode ends early" if length > room and self._tokenizer else ""
        told(
            "played",
            f"{episode.environment} {episode.task_id}: {len(episode.turns)} turns of {who}, "
            f"{'won' if episode.success else 'not won'}; {said:.0f} tokens{model} a strategy, {length} in all{over}",
        )

    def _count(self, text: str) -> int:
        """Tokens of a text as a large model counts."""
        if self._tokenizer is not None and self._tokenizer.vocab_size >= LARGE_VOCABULARY:
            return len(self._tokenizer.encode(text))
        return forecast.by_bytes(text)

    # --- what it takes ----------------------------------------------------------------------------------------------

    def _learning(self) -> None:
        config = self._config
        self._mesh = self._try(lambda: strategists.make_run_mesh(config))
        self._try(lambda: check_buckets(config.learn.length_buckets, config.learn.max_length))
        if self._mesh is None:
            return
        told("mesh", describe(self._mesh))
        for name in ("learn",) if self._recorded or not config.warm_start.episodes else ("learn", "warm_start"):
            self._try(lambda name=name: check_rows(f"{name}.rows", config[name].rows, self._mesh))
        if not self._recorded:
            self._try(lambda: self._check_learning(config, self._mesh))
        if self._model is not None:
            self._try(lambda: check_divides(self._model, self._mesh))

    def _memory(self) -> None:
        adapted = self._try(lambda: self._model and lora.declare(self._model, lora.from_config(self._config.model.lora)))
        if adapted is None:
            self._model = None
        if self._model is None or self._mesh is None:
            return
        plan = self._try(lambda: memory_plan.plan(self._config, self._model, self._mesh, own=own_mesh(self._mesh)))
        if plan is None:
            return
        parts = {"parameters": plan.parameters, "gradients": plan.gradients, "optimizer": plan.optimizer, "weights to play with": plan.playing}
        parts |= {"other models": plan.others, "key/value cache": 0 if self._recorded else plan.cache, "activations": plan.activations}
        parts |= {"a copy to save": plan.saving}
        lasting, play = plan.parameters + plan.optimizer + plan.others + plan.saving, plan.playing + (0 if self._recorded else plan.cache)
        together = sum if self._config.async_rounds else max  # else what plays is given up while it learns
        exact, needed = (lasting + together((play, learn)) for learn in (plan.gradients, plan.gradients + plan.activations))
        there = memory_plan.available()
        listed = ", ".join(f"{name} {told_bytes(size)}" for name, size in parts.items() if size)
        of = f" of {told_bytes(there)}" if there else ""
        apart = "" if self._config.async_rounds or self._recorded else "; playing and learning take turns"
        told("memory", f"a device, at most: about {told_bytes(needed)}{of} ({listed}{apart})")
        if there is None:
            return
        if exact > there:
            self._problem(
                f"a device has {told_bytes(there)}, and without activations alone {told_bytes(exact)} lie on it: split the "
                "weights over more devices (--config.mesh.fsdp=N), or take fewer rollout.slots or a shorter rollout.max_context."
            )
        elif needed > ENOUGH * there:
            told("memory", "that is tight: lower learn.rows (and raise learn.accumulation), or set model.remat to full")

    def _rounds(self) -> None:
        config, learn = self._config, self._config.learn
        if self._recorded:
            steps = math.ceil(getattr(self, "_conversation_count", 0) / max(1, learn.rows * learn.accumulation))
            told("plan", f"{learn.epochs} passes of {steps} optimizer steps")
            return
        if config.learn_from == "stepagent":
            told("plan", f"{config.rounds} cycles, each on {config.stepagent.experts} of the expert's trajectories")
            return
        if self.problems or not self._task_sets:  # episodes cannot be dealt from what is not there
            return
        weights = config.self_play.opponents.to_dict()
        conversing = any(task_set.two_seats for task_set in self._task_sets)
        played = [
            episodes_of_round(
                self._task_sets,
                count=config.rollout.episodes,
                group_size=config.rollout.group_size,
                seed=config.seed,
                round=round,
                opponent=lambda index, round=round: opponents.drawn(
                    weights, seed=config.seed, round=round, index=index, memory=config.self_play.memory
                )
                if conversing
                else opponents.SCRIPTED,
            )
            for round in range(config.rounds)
        ]
        size = learn.rows * learn.accumulation
        steps = [learn.epochs * math.ceil(sum(episode.trajectories for episode in round) / size) for round in played]
        warm = math.ceil(config.warm_start.episodes / (config.warm_start.rows * config.warm_start.accumulation))
        held_out = episodes_of_evaluation(self._task_sets, opponent=config.self_play.evaluate if conversing else opponents.SCRIPTED)
        evaluations = len({*range(0, config.rounds, config.evaluate.every), config.rounds})
        before = f"warm start of {warm} optimizer steps; " if warm else ""
        told(
            "plan",
            f"{before}{config.rounds} rounds of {config.rollout.episodes} episodes and "
            f"{steps[0] if steps else 0} optimizer steps, {sum(steps)} steps in all; {evaluations} evaluations of {len(held_out)} episodes",
        )
        trained = [episode for round in played for episode in round]
        if config.credit.estimator == "bc":  # cloned, not played
            trained = []
        self._calls({name: (_seats(trained, name), evaluations * _seats(held_out, name)) for name in self._shapes})

    def _calls(self, episodes: dict[str, tuple[int, int]]) -> None:
        """What API models would be asked: with episodes as short as the expert's, and with all their turns taken. episodes: trained, evaluated."""
        config = self._config
        for role, section in partners.api_roles(config, "actor", "judge", "evaluator").items():
            ends = []
            for longest in (False, True):
                calls = Calls()
                for task_set in self._task_sets:
                    if (shape := self._shapes.get(task_set.environment)) is None:
                        continue
                    turns = task_set.max_turns if longest else min(shape.turns, task_set.max_turns)
                    trained, evaluated = episodes[task_set.environment]
                    if role == "actor":
                        calls += shape.actor(turns) * (trained + evaluated)
                    elif role == "judge":
                        calls += shape.judge(turns, config.judge) * trained
                    elif task_set.two_seats:
                        calls += shape.evaluator(turns) * (trained + evaluated)
                ends.append(calls)
            requests, read, said = (between(values) for values in zip(*((c.requests, c.prompt / 1e6, c.answer / 1e6) for c in ends), strict=True))
            told("calls", f"{role} {config[section].model}: {requests} requests, {read} M tokens in prompts, {said} M in answers")
            settings = config[section].to_dict()
            if settings["price_per_million_prompt"] or settings["price_per_million_completion"]:
                told("cost", f"{role}: {between([calls.money(settings) for calls in ends])} in the currency of its prices")
            else:
                told("cost", f"{role}: not known; set --config.{section}.price_per_million_prompt and …_completion")

    def _disk(self) -> None:
        config = self._config
        if self._model is None:
            return
        params = self._model.num_params
        learned = sum(math.prod(weight.shape) for weight in jax.tree.leaves(lora.declare(self._model, lora.from_config(config.model.lora))))
        forever = config.rounds // config.checkpoint.keep_every + 1 if config.checkpoint.keep_every else 0
        kept = max(1, config.checkpoint.keep) + 1 + config.checkpoint.keep_best + forever  # the newest is written before the oldest goes
        saved = CHECKPOINT_BYTES * learned * kept
        kept = EXPORT_BYTES * params
        if not self._recorded and (config.async_rounds or any(task_set.two_seats for task_set in self._task_sets)):
            kept *= 2 + config.self_play.memory
        lines = 0 if self._recorded else int(LINE_BYTES * self._tokens_an_episode * config.rounds * config.rollout.episodes)
        folder = pathlib.Path(config.workdir or f"runs/{config.name}").absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        needed = saved + kept + lines
        told("disk", f"{told_bytes(needed)} (checkpoints {told_bytes(saved)}, weights {told_bytes(kept)}, episodes {told_bytes(lines)}); {told_bytes(free)} are free")
        if needed > free:
            self._problem(f"the run may need {told_bytes(needed)} on the disk of {folder}, and {told_bytes(free)} are free: make room, or set --config.workdir.")


def told(subject: str, sentence: str) -> None:
    say(f"  {subject:<9} {sentence}")


def told_bytes(size: float) -> str:
    """"3.1 GB"; powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"


def between(ends: Sequence[float]) -> str:
    """"1,024 to 7,680", or one number where both are the same; whole numbers above 100."""
    return " to ".join(dict.fromkeys(f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" for value in ends))


def _seats(episodes: list[Any], environment: str) -> int:
    """Trajectories of an environment: each has its own actor and is judged alone."""
    return sum(episode.trajectories for episode in episodes if episode.task_set.environment == environment)


def _length(episode: Trajectory) -> int:
    return len(episode.tokens)
