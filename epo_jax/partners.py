"""The strategist's partners in a run: actor, judge and evaluator, by the names that a configuration gives them, and what they cost.

    actor      literal     carries out what the strategy's words name (rollout/literal.py)
               openai      a model behind an API, `config.actor_api` (rollout/actor_openai.py)
               local       a frozen model in this process, `config.local_actor` (rollout/actor_local.py)
               policy      nobody: what the policy says is the action (rollout/acting.py)
    judge      progress    the environment's own progress (reward/judge.py)
               verifier    the environment's outcome alone
               openai      the published scoring by a model behind an API, `config.judge_api` (reward/judge_openai.py)
               graded      a grade for every turn, by the same
    evaluator  none        conversations are scored by a rule, or not at all
               openai      SOTOPIA's seven dimensions by a model behind an API, `config.evaluator_api` (reward/evaluator_openai.py)
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from envs.sotopia.environment import REAL
from epo_jax import strategist as strategists
from epo_jax.api import budget
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings
from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.hosts import exchange
from epo_jax.mesh import param_shardings
from epo_jax.reward.evaluator import Evaluator
from epo_jax.reward.evaluator_openai import OpenAIEvaluator
from epo_jax.reward.judge import Judge, ProgressJudge, Verifier
from epo_jax.reward.judge_openai import GradedJudge, OpenAIJudge
from epo_jax.rollout import opponents
from epo_jax.rollout.acting import ActingPolicy
from epo_jax.rollout.actor_local import LocalActor
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.rollout.actors import Actor, LiteralActor
from epo_jax.rollout.tasks import TaskSet
from epo_jax.strategist import Strategist

API_JUDGES = ("graded", "openai")
EVALUATORS = ("none", "openai")
INITIAL = ("", "initial")  # local_actor.source: the strategist's own weights, as they were before any training
CACHE_NAME = "api_cache.sqlite"
BUDGET_NAME = "api_spent.sqlite"


# --- before anything is made ----------------------------------------------------------------------------------------


def check_actor(config: ConfigDict) -> None:
    """Raises `UserError` for an actor that does not exist or lacks something: a key, a model's name, weights."""
    if config.actor not in ACTORS:
        raise UserError(f"unknown actor {config.actor!r}: known are {', '.join(sorted(ACTORS))}.")
    for name, settings in config.environments.items():
        acts = settings.prompt.startswith("act")
        if settings.share and acts != (config.actor == "policy"):
            wanted = "act or act_brief, as the actor is the policy itself" if not acts else f"full or brief, as the actor is {config.actor}"
            raise UserError(f"environments.{name}.prompt is {settings.prompt}: set it to {wanted}.")
    if config.actor == "openai":
        _check_api(config, "actor_api")
    if config.actor == "local":
        if config.local_actor.source == "random":
            raise UserError("local_actor.source is random: name weights, or leave it empty for the strategist's own before training.")
        if config.local_actor.prompt not in ("full", "brief"):
            raise UserError(f"local_actor.prompt is {config.local_actor.prompt!r}: it must be full or brief.")
        if config.local_actor.source not in INITIAL:
            strategists.find(config.local_actor.source)


def check_judge(config: ConfigDict) -> None:
    """Raises `UserError` for a judge that does not exist or lacks something."""
    if config.judge not in JUDGES:
        raise UserError(f"there is no judge {config.judge!r}: choose one of {', '.join(JUDGES)}.")
    if config.judge in API_JUDGES:
        _check_api(config, "judge_api")


def check_evaluator(config: ConfigDict) -> None:
    """Raises `UserError` for an evaluator that does not exist or lacks something."""
    if config.evaluator not in EVALUATORS:
        raise UserError(f"there is no evaluator {config.evaluator!r}: choose one of {', '.join(EVALUATORS)}.")
    if config.evaluator == "openai":
        _check_api(config, "evaluator_api")


def check_scored(config: ConfigDict, task_sets: Sequence[TaskSet]) -> None:
    """Raises `UserError` where no rule scores SOTOPIA's own combinations and there is no evaluator to do it."""
    for task_set in task_sets:
        for split, tasks in ((task_set.train_split, task_set.train), (task_set.eval_split, task_set.held_out)):
            if task_set.two_seats and config.evaluator == "none" and tasks and tasks[0].combination.kind == REAL:
                raise UserError(
                    f"no rule scores the conversations of {task_set.environment}'s split {split}: set --config.evaluator=openai (a model reads each "
                    "one whole), or play the splits generated:train and generated:eval."
                )


def _check_api(config: ConfigDict, section: str) -> None:
    settings = ApiSettings.from_config(config[section], section)
    settings.server()
    if not config.api.offline:
        settings.read_key()
    elif not pathlib.Path(config.api.cache).is_file():
        raise UserError(f"api.offline replays a cache, and there is none at {config.api.cache!r}: name its file with --config.api.cache=FILE.")


# --- what API models cost -------------------------------------------------------------------------------------------


class ApiClients:
    """A client for each role ("actor", "judge", "evaluator") that an API model plays, over one cache and one budget in the run's folder."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, roles: Mapping[str, str]) -> None:
        """roles: role → the section of the configuration that says which model. Without any, no file is made."""
        self._clients: dict[str, ApiClient] = {}
        self.cache: ReplyCache | None = None
        self.budget: Budget | None = None
        if not roles:
            return
        processes = exchange.count()
        settings = {role: ApiSettings.from_config(config[section], section).divided(processes) for role, section in roles.items()}
        in_folder = not config.api.cache and not config.api.offline
        spent = exchange.by_first(lambda: _left_by_earlier_starts(folder, caches=in_folder))
        own, present = _of(exchange.index(), BUDGET_NAME), [_of(process, BUDGET_NAME) for process in range(processes)]
        self.budget = Budget.shared(list(settings.values()), folder / own)
        self.budget.share(processes, *_sum(found for name, found in spent.items() if name != own))
        self._absent = _sum(found for name, found in spent.items() if name not in present)
        if config.api.cache != "none":
            self.cache = ReplyCache(config.api.cache or folder / _of(exchange.index(), CACHE_NAME), offline=config.api.offline)
        self._clients = {role: ApiClient(each, cache=self.cache, budget=self.budget) for role, each in settings.items()}
        self._reported = {role: client.totals.as_dict() for role, client in self._clients.items()}

    def __getitem__(self, role: str) -> ApiClient:
        return self._clients[role]

    def note(self) -> str:
        """Running totals in a few words, for a progress bar; "" without API models."""
        return "; ".join(
            f"{role} {client.totals.note()}{' (paused: the server fails)' if client.paused else ''}" for role, client in self._clients.items()
        )

    def figures(self) -> dict[str, float]:
        """What was asked, and what it cost, since the last call: every count of `api.totals.Totals` as `api_<role>_<count>`.

        `api_<role>_cached_share` besides; `api_spent_tokens` and `api_spent_money` are the whole run's, over all its starts.
        """
        values: dict[str, float] = {}
        for role, client in self._clients.items():
            now, before = client.totals.as_dict(), self._reported[role]
            since = {name: now[name] - before.get(name, 0) for name in now}
            values |= {f"api_{role}_{name}": value for name, value in since.items()}
            values[f"api_{role}_cached_share"] = since["cached"] / since["calls"] if since["calls"] else math.nan
            self._reported[role] = now
        if self.budget is not None:
            tokens, money = self._absent if exchange.first() else (0, 0.0)
            values |= {"api_spent_tokens": self.budget.spent_tokens + tokens, "api_spent_money": self.budget.spent_money + money}
        return values

    def close(self) -> None:
        """Ends cache and budget. Connections end with the event loop they were made in."""
        for each in (self.cache, self.budget):
            if each is not None:
                each.close()


def _of(process: int, name: str) -> str:
    """Of several processes each has files of its own: they may be on machines that share no locks."""
    stem, dot, kind = name.rpartition(".")
    return name if exchange.count() == 1 else f"{stem}.process_{process}{dot}{kind}"


def _left_by_earlier_starts(folder: pathlib.Path, *, caches: bool) -> dict[str, tuple[int, float]]:
    """{file: (tokens, money)} of what all processes of all starts have spent. caches: every process's gets the replies of all of them besides, so
    that an episode that another one begins anew asks nothing again. Before any of these files is opened."""
    if caches:
        for process in range(exchange.count()):
            own = folder / _of(process, CACHE_NAME)
            if others := [path for path in _files(folder, CACHE_NAME) if path != own]:
                cache = ReplyCache(own)
                for path in others:
                    cache.take_over(path)
                cache.close()
    return {path.name: budget.spent_in(path) for path in _files(folder, BUDGET_NAME)}


def _files(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """That of a process alone and those of several, as far as they are there."""
    stem, dot, kind = name.rpartition(".")
    return [path for path in (folder / name, *sorted(folder.glob(f"{stem}.process_*{dot}{kind}"))) if path.exists()]


def _sum(found: Iterable[tuple[int, float]]) -> tuple[int, float]:
    found = list(found)
    return sum(tokens for tokens, _ in found), math.fsum(money for _, money in found)


# --- the partners ---------------------------------------------------------------------------------------------------


class Partners:
    """Actor, judge and evaluator of one run. Make them before the learner takes the strategist's weights."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, strategist: Strategist, mesh: Mesh) -> None:
        self.clients = ApiClients(config, folder, api_roles(config, "actor", "judge", "evaluator"))
        self.actor = make_actor(config, self.clients, strategist, mesh)
        self.judge = make_judge(config.judge, self.clients)
        self.evaluator = make_evaluator(config, self.clients)

    def close(self) -> None:
        self.clients.close()
        close_actor(self.actor)


def make_actor(config: ConfigDict, clients: ApiClients, strategist: Strategist | None, mesh: Mesh) -> Actor:
    """The actor that `config.actor` names; see `check_actor`. strategist: untrained, for a local actor that is the same model."""
    return ACTORS[config.actor].make(config, clients, strategist, mesh)


def api_roles(config: ConfigDict, *roles: str) -> dict[str, str]:
    """Those of "actor", "judge" and "evaluator" that an API model plays → the section of the configuration that says which."""
    plays = {"actor": config.actor == "openai", "judge": config.judge in API_JUDGES, "evaluator": config.evaluator == "openai"}
    return {role: f"{role}_api" for role in roles if plays[role]}


def make_judge(name: str, clients: ApiClients, *, salt: str = "") -> Judge:
    """The judge of that name; see `check_judge`. salt: of an API judge's calls; another one asks anew what the cache holds."""
    return JUDGES[name](clients, salt)


def make_evaluator(config: ConfigDict, clients: ApiClients, *, salt: str = "") -> Evaluator | None:
    """The evaluator that `config.evaluator` names; see `check_evaluator`. salt: of its calls; another one asks anew what the cache holds."""
    if config.evaluator == "none":
        return None
    return OpenAIEvaluator(clients["evaluator"], clients["evaluator"].name, salt=salt)


def close_actor(actor: Actor) -> None:
    """Ends what an actor holds beyond its episodes."""
    if isinstance(actor, LocalActor):
        actor.shutdown()


def _openai_actor(config: ConfigDict, clients: ApiClients, strategist: Strategist | None, mesh: Mesh) -> OpenAIActor:
    return OpenAIActor(clients["actor"], clients["actor"].name)


def _literal_actor(config: ConfigDict, clients: ApiClients, strategist: Strategist | None, mesh: Mesh) -> LiteralActor:
    return LiteralActor()


def _policy_itself(config: ConfigDict, clients: ApiClients, strategist: Strategist | None, mesh: Mesh) -> ActingPolicy:
    return ActingPolicy()


def _local_actor(config: ConfigDict, clients: ApiClients, strategist: Strategist | None, mesh: Mesh) -> LocalActor:
    settings = config.local_actor
    if settings.source in INITIAL:
        model = strategist
    else:
        other = config.copy_and_resolve_references()
        other.model.source = settings.source
        model = strategists.load(other, mesh)
    dtype = jnp.dtype(config.model.compute_dtype)
    # A copy, as the learner donates the strategist's own arrays to its first step.
    shardings = None if mesh.size == 1 else param_shardings(model.config, mesh)
    copied = jax.jit(lambda params: jax.tree.map(lambda x: jnp.copy(x).astype(dtype), params), out_shardings=shardings)(model.params)
    # Two sessions for one of the strategist's, where the other seat is the actor's too: one that gave its slot up would read its tokens in other pieces.
    met = {kind for kind, weight in config.self_play.opponents.items() if weight} | {config.self_play.evaluate}
    both_seats = config.environments.sotopia.share > 0 and met - {opponents.SELF, opponents.SCRIPTED}
    engine = Engine(
        model.config,
        copied,
        stop_ids=model.conversation.stop_ids,
        pad_id=model.tokenizer.pad_id,
        slots=config.rollout.slots * (2 if both_seats else 1),
        max_length=settings.max_context,
        decode_chunk=config.rollout.decode_chunk,
        compute_dtype=dtype,
        mesh=mesh if mesh.size > 1 else None,
        weights_version="frozen",
        exact=config.rollout.exact,
    )
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.max_action_tokens)
    return LocalActor(engine, model.conversation, sampling, model=model.name, prompt=settings.prompt)


class ActorKind(NamedTuple):
    """make: (config, clients, strategist, mesh) → the actor; needs_strategy, name: what is known of it before it is made."""

    make: Callable[[ConfigDict, ApiClients, Strategist | None, Mesh], Actor]
    needs_strategy: bool
    name: Callable[[ConfigDict], str]


# To add an actor, name it here.
ACTORS: dict[str, ActorKind] = {
    "literal": ActorKind(_literal_actor, LiteralActor.needs_strategy, lambda config: "literal"),
    "local": ActorKind(_local_actor, LocalActor.needs_strategy, lambda config: f"local:{config.local_actor.source}"),
    "policy": ActorKind(_policy_itself, ActingPolicy.needs_strategy, lambda config: "policy"),
    "openai": ActorKind(_openai_actor, OpenAIActor.needs_strategy, lambda config: f"openai:{config.actor_api.model}"),
}

# To add a judge, name it here: (clients, salt) → the judge.
JUDGES: dict[str, Callable[[ApiClients, str], Judge]] = {
    "graded": lambda clients, salt: GradedJudge(clients["judge"], clients["judge"].name, salt=salt),
    "openai": lambda clients, salt: OpenAIJudge(clients["judge"], clients["judge"].name, salt=salt),
    "progress": lambda clients, salt: ProgressJudge(),
    "verifier": lambda clients, salt: Verifier(),
}
