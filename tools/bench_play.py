"""Where the time of a round goes: strategist, actor, environment, judge, and how many of the slots are kept busy.

    python tools/bench_play.py --quick                                  a minute: a short round of the embedded default
    python tools/bench_play.py [--preset=mini] [--episodes=192] [--json]      rounds of configs/alfshop.py, as its run plays them
    python tools/bench_play.py --not_exact          besides, with rollout.exact=False: what it costs that no episode depends on its company

Each way plays a whole round through the loop that training uses, once to warm up (what that takes longer is told apart: compilation) and once
for each of --repeats: with the literal actor, and with one that also waits --actor_ms before it acts, as a model behind an API does.

Shares are of the wall-clock time of play and judgement. Strategist: the device at work. Environment, other: the processor time of the loop's
thread in the environments, and outside of environments and actor (bookkeeping, tokens to text, the engine's own). Actor: while at least one
episode waits for it. Parts that overlap add up to more than 1. "Actors at once" is how many episodes wait for the actor on average; without
overlap it could not exceed 1. Slots busy: those that an episode holds. Rows sampled: of the slots, how many sample in a step of decode.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

import envs  # noqa: E402
from configs import alfshop  # noqa: E402
from epo_jax import command_line, strategist as strategists  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.generate.engine import Engine, Sampled, Sampling, Session  # noqa: E402
from epo_jax.reward.judge import ProgressJudge, judge_all  # noqa: E402
from epo_jax.rollout import tasks  # noqa: E402
from epo_jax.rollout.actors import Actor, ActorSession, LiteralActor  # noqa: E402
from epo_jax.rollout.environments import Environments, Here  # noqa: E402
from epo_jax.rollout.play import Player, episodes_of_round, play_episodes  # noqa: E402
from epo_jax.rollout.tasks import TaskSet  # noqa: E402
from epo_jax.rollout.workers import Workers  # noqa: E402
from epo_jax.strategist import Strategist  # noqa: E402
from tools import measurement  # noqa: E402

SHARES = ("strategist", "actor", "environment", "judge", "other")


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_play.py", __doc__)
    parser.add_argument("--preset", default="mini", help="of configs/alfshop.py")
    parser.add_argument("--episodes", type=int, default=0, help="of a round; 0: as the preset says")
    parser.add_argument("--slots", type=int, default=0, help="of the engine; 0: as the preset says")
    parser.add_argument("--at_once", type=int, default=0, help="episodes at once; 0: as many as slots")
    parser.add_argument("--max_turns", type=int, default=0, help="of an episode; 0: as the preset says")
    parser.add_argument("--actor_ms", type=float, default=50.0, help="how long the slow actor waits before it acts, in milliseconds")
    parser.add_argument("--workers", type=int, default=0, help="processes that run the environments (rollout.workers), each way with and without")
    parser.add_argument("--not_exact", action="store_true", help="measure every way with rollout.exact=False too")
    parser.add_argument("--devices", type=int, default=1, help="how many play; 0: all")
    parser.add_argument("--repeats", type=int, default=3, help="how often every side is measured")
    return measurement.main(parser, arguments, measure, show, quick={"repeats": 1, "episodes": 32})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"machine", "round", "ways": a row for each actor}."""
    config = _config(options)
    mesh = strategists.make_run_mesh(config, jax.devices()[: options.devices or None])
    strategist = strategists.load(config, mesh)
    task_sets = tasks.load(config)
    actors = {"literal": LiteralActor(), f"literal, waits {options.actor_ms:g} ms": WaitingActor(options.actor_ms / 1e3)}
    with contextlib.ExitStack() as stack:
        places: dict[str, Environments] = {"": Here()}
        if options.workers:
            places[f", {options.workers} workers"] = stack.enter_context(Workers(options.workers))
        ways: dict[str, tuple[Actor, Engine, Environments]] = {}
        for exact in (True, False) if options.not_exact else (config.rollout.exact,):
            config.rollout.exact = exact
            engine = stack.enter_context(strategists.engine(strategist, strategist.params, config, mesh, "0"))
            for name, actor in actors.items():
                ways |= {name + words + ("" if exact else ", not exact"): (actor, engine, where) for words, where in places.items()}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.repeats + 1):
            for name, (actor, engine, where) in ways.items():
                engine.update_weights(strategist.params, "again")
                at_once = options.at_once or config.rollout.slots
                taken[name].append(play(config, task_sets, strategist, engine, actor, at_once=at_once, environments=where))
    rows = []
    for name, (first, *runs) in taken.items():
        row: dict[str, Any] = {"way": name} | {figure: measurement.spread([run[figure] for run in runs]) for figure in runs[0]}
        rows.append(row | {"first_round_seconds_more": first["seconds"] - row["seconds"]["min"], "first_round_compilations": first["compilations"]})
    settings = {"preset": options.preset, "strategist": strategist.name, "episodes": config.rollout.episodes, "slots": config.rollout.slots}
    return {"machine": measurement.machine(), "round": settings, "ways": rows}


def _config(options: argparse.Namespace) -> ConfigDict:
    try:
        config = alfshop.get_config(options.preset)
    except ValueError as error:  # no such preset
        raise UserError(str(error)) from None
    config.rollout.episodes = options.episodes or config.rollout.episodes
    config.rollout.slots = options.slots or config.rollout.slots
    if options.max_turns:
        for settings in config.environments.values():
            settings.max_turns = options.max_turns
    return config


# --- one round ------------------------------------------------------------------------------------------------------


def play(
    config: ConfigDict, task_sets: Sequence[TaskSet], strategist: Strategist, engine: Engine, actor: Actor, *, at_once: int,
    environments: Environments = Here(),
) -> dict[str, float]:
    """Plays and judges a round; its figures, as the module says what they mean."""
    clocks = Clocks()
    timed = [TimedTaskSet(**vars(task_set), clocks=clocks) for task_set in task_sets]
    episodes = episodes_of_round(timed, count=config.rollout.episodes, seed=config.seed, round=0)
    sampling = strategists.sampling(config, config.rollout.temperature)
    busy = Busy(engine)
    player = Player(busy, strategist.conversation, TimedActor(actor, clocks), sampling, 0, engine.weights_version, environments=environments)
    before, stopwatch = engine.stats, measurement.Stopwatch()
    began, thread_began = time.perf_counter(), time.thread_time()
    played = asyncio.run(play_episodes(player, episodes, at_once=at_once, on_finish=lambda _: None))
    play_seconds, thread_seconds = time.perf_counter() - began, time.thread_time() - thread_began
    judging = time.perf_counter()
    asyncio.run(judge_all(ProgressJudge(), played))
    judge_seconds = time.perf_counter() - judging
    did = {name: number - before[name] for name, number in engine.stats.items()}
    seconds = play_seconds + judge_seconds
    inside = clocks.processor["environment"] + clocks.processor["actor"]
    return {
        "seconds": seconds,
        "processor_seconds": stopwatch.taken().processor,
        "episodes_per_second": len(played) / seconds,
        "turns_per_second": sum(len(trajectory.turns) for trajectory in played) / seconds,
        "tokens_per_second": did["decode_tokens"] / seconds,
        "strategist": did["seconds"] / seconds,
        "actor": clocks.any_waiting("actor") / seconds,
        "environment": clocks.processor["environment"] / seconds,
        "judge": judge_seconds / seconds,
        "other": max(0.0, thread_seconds - inside) / seconds,
        "actors_at_once": clocks.waited["actor"] / play_seconds,
        "slots_busy": busy.mean(play_seconds) / engine.slots,
        "rows_sampled": did["decode_tokens"] / max(1, did["decode_steps"] * engine.slots),
        "read_share": did["prefill_tokens"] / max(1, did["prompt_tokens"]),
        "compilations": did["compilations"],
    }


class Clocks:
    """processor: seconds of this thread in a part; waited: seconds in it on the wall, summed over episodes."""

    def __init__(self) -> None:
        self.processor = {"environment": 0.0, "actor": 0.0}
        self.waited = {"environment": 0.0, "actor": 0.0}
        self._inside = {"environment": 0, "actor": 0}
        self._any = {"environment": 0.0, "actor": 0.0}
        self._since = {"environment": 0.0, "actor": 0.0}

    @contextlib.contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Counts what happens in it; several episodes may be inside at once."""
        began = time.perf_counter()
        if self._inside[part] == 0:
            self._since[part] = began
        self._inside[part] += 1
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.waited[part] += ended - began
            self._inside[part] -= 1
            if self._inside[part] == 0:
                self._any[part] += ended - self._since[part]

    @contextlib.contextmanager
    def working(self, part: str) -> Iterator[None]:
        """Counts the processor's time of work that does not wait."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.processor[part] += time.thread_time() - began

    def any_waiting(self, part: str) -> float:
        """Seconds in which at least one episode was inside."""
        return self._any[part]


class TimedEnvironment:
    """An environment whose every use is counted."""

    def __init__(self, environment: envs.Environment, clocks: Clocks) -> None:
        self._environment, self._clocks = environment, clocks

    def __getattr__(self, name: str) -> Any:
        with self._clocks.working("environment"):
            value = getattr(self._environment, name)  # a property works here
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            with self._clocks.working("environment"):
                return value(*arguments)

        return call


@dataclasses.dataclass(frozen=True)
class TimedTaskSet(TaskSet):
    """A task set whose environments are counted."""

    clocks: Clocks | None = None

    def make(self) -> envs.Environment:
        with self.clocks.working("environment"):
            environment = super().make()
        return TimedEnvironment(environment, self.clocks)


class TimedActor:
    """An actor whose calls are counted. The literal one, which never waits, is the only work of its thread that is counted as processor time."""

    def __init__(self, actor: Actor, clocks: Clocks) -> None:
        self._actor, self._clocks = actor, clocks
        self.name, self.needs_strategy, self.money = actor.name, actor.needs_strategy, actor.money

    def begin(self, environment: str, seed: int) -> ActorSession:
        return TimedActing(self._actor.begin(environment, seed), self._clocks)


class TimedActing:
    """Such an actor in one episode."""

    def __init__(self, acting: ActorSession, clocks: Clocks) -> None:
        self._acting, self._clocks = acting, clocks

    async def act(self, observation: str, *, strategy: str, admissible: Sequence[str]) -> str:
        with self._clocks.inside("actor"):
            if isinstance(self._acting, WaitingActor):
                await self._acting.wait()
            with self._clocks.working("actor"):
                return await self._acting.act(observation, strategy=strategy, admissible=admissible)

    @property
    def counts(self) -> dict[str, int]:
        return self._acting.counts

    def close(self) -> None:
        self._acting.close()


class WaitingActor(LiteralActor):
    """The literal actor after a wait, as long as one call of a model behind an API."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def wait(self) -> None:
        await asyncio.sleep(self._seconds)


class Busy:
    """The engine as the loop uses it, with how many slots are held, weighted by how long."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen = time.perf_counter()
        self._held = 0
        self._sum = 0.0

    def open(self, seed: int) -> Session:
        return self._engine.open(seed)

    async def generate(self, session: Session, tokens: Sequence[int], sampling: Sampling) -> Sampled:
        self._look()
        try:
            return await self._engine.generate(session, tokens, sampling)
        finally:
            self._look()

    def close(self, session: Session) -> None:
        self._look()
        self._engine.close(session)
        self._look()

    def mean(self, seconds: float) -> float:
        """Slots held, on average over so many seconds."""
        self._look()
        return self._sum / seconds

    def _look(self) -> None:
        now = time.perf_counter()
        self._sum += self._held * (now - self._seen)
        self._seen, self._held = now, self._engine.busy_slots


# --- telling --------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    told, ways = measurement.told, result["ways"]
    settings = result["round"]
    lines = [
        ("seconds of a round", "seconds", "{:.1f}"), ("by processor time", "processor_seconds", "{:.1f}"), ("episodes/s", "episodes_per_second", "{:.2f}"), ("turns/s", "turns_per_second", "{:.1f}"),
        ("new tokens/s", "tokens_per_second", "{:.0f}"), *((f"share: {name}", name, "{:.3f}") for name in SHARES),
        ("actors at once", "actors_at_once", "{:.2f}"), ("slots busy", "slots_busy", "{:.2f}"), ("rows sampled", "rows_sampled", "{:.2f}"),
        ("read ÷ prompt tokens", "read_share", "{:.3f}"), ("first round, s more", "first_round_seconds_more", "{:.1f}"),
        ("its compilations", "first_round_compilations", "{:.0f}"), ("compilations after it", "compilations", "{:.0f}"),
    ]  # fmt: skip
    measurement.show(
        f"rounds of {settings['episodes']} episodes, {settings['slots']} slots, strategist {settings['strategist']}",
        ("actor", *(way["way"] for way in ways)),
        [(label, *(told(way[name], pattern) for way in ways)) for label, name, pattern in lines],
    )
    measurement.show_machine(result["machine"])


if __name__ == "__main__":
    sys.exit(main())
