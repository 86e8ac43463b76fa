"""Conversations of SOTOPIA's own combinations whose actor and evaluator sit behind a failing server: real sockets, and every count against its record."""

from __future__ import annotations

import asyncio
import collections
import csv
import hashlib
import json

import numpy as np
import pytest

import envs
from configs.defaults import get_defaults
from envs.sotopia.action import ACTION_TYPES, Action
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings
from epo_jax.errors import UserError
from epo_jax.evaluate.run import Evaluation, Options
from epo_jax.evaluation import estimate, task_of, values_of
from epo_jax.generate.engine import Sampling
from epo_jax.interrupt import StopRequest
from epo_jax.reward.evaluator import DIMENSIONS
from epo_jax.reward.evaluator_openai import OpenAIEvaluator
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.rollout.alone import Silence
from epo_jax.rollout.opponents import SELF
from epo_jax.rollout.play import Player, episodes_of_evaluation, play_episodes
from epo_jax.rollout.prompts import load
from epo_jax.rollout.tasks import TaskSet
from epo_jax.train import Run
from tests.api import scripted_server as give
from tests.api.scripted_server import ScriptedServer
from tests.api.scripted_time import JumpingTime
from tests.envs.sotopia.conftest import sotopia_data  # noqa: F401  (a fixture)
from tests.test_faulty_round import Strategist, address

TRIES, EVERY = 3, 38  # of the 900 seats: 24 combinations
FAULTS = {
    "rate_limited": [give.too_many(), give.too_many("2")],
    "server_error": [give.status(500)],
    "connection": [give.reset()],
    "half_body": [give.half_body()],
    "invalid_json": [give.invalid_json()],
}
ANSWERED, OF_NO_USE = "answered", "answered, of no use"
ACTOR, EVALUATOR = "actor", "evaluator"


class FaultySotopia(ScriptedServer):
    """Answers as actor and as evaluator. A share `faults` of the tries fails, a share `useless` of a role's answers is no action or no scores; which
    ones is decided by the request and its number alone. `record`: request → what each of its tries got; `asked`: request → its messages; `scores`: every usable evaluation.
    """

    def __init__(self, faults, useless=0.0, useless_scores=0.0):
        super().__init__()
        self.faults, self.useless, self.otherwise = faults, {ACTOR: useless, EVALUATOR: useless_scores}, self._decide
        self.record, self.asked, self.scores = collections.defaultdict(list), {}, []

    def _decide(self, body):
        key = address(body["messages"])
        chance = np.random.default_rng(list(hashlib.sha256(f"{key}/{len(self.record[key])}".encode()).digest()))
        self.asked[key] = body["messages"]
        if chance.random() < self.faults:
            kind = chance.choice(list(FAULTS))
            self.record[key].append(str(kind))
            return FAULTS[kind][chance.integers(len(FAULTS[kind]))]
        useless = chance.random() < self.useless[role(body["messages"])]
        self.record[key].append(OF_NO_USE if useless else ANSWERED)
        if role(body["messages"]) == ACTOR:
            assert body["temperature"] == 0.7 and body["response_format"]["type"] == "json_schema"
            return give.good(self._useless_action(chance) if useless else self._action(chance))
        assert body["temperature"] == 0.0
        scores = [{name: int(chance.integers(low, high + 1)) for name, (low, high) in DIMENSIONS.items()} for _ in range(2)]
        if not useless:
            self.scores.append(scores)
            return give.good(json.dumps(evaluation(scores)))
        name = str(chance.choice(list(DIMENSIONS)))
        beyond = scores[0] | {name: DIMENSIONS[name][1] + 1}
        missing = {"agent_1": evaluation(scores)["agent_1"]}
        return give.good([json.dumps(evaluation([beyond, scores[1]])), json.dumps(missing), "They did well."][chance.integers(3)])

    def _action(self, chance):
        kind = chance.choice(ACTION_TYPES, p=[0.1, 0.65, 0.1, 0.1, 0.05])
        words = f"number {chance.integers(10**9)}" if kind not in ("none", "leave") else ""
        return json.dumps({"action_type": str(kind), "argument": words})

    def _useless_action(self, chance):
        return ["Good morning!", '{"action_type": "shout", "argument": "Hey"}', '{"action_type": "speak"}', ""][chance.integers(4)]

    def tries(self):
        return [outcome for outcomes in self.record.values() for outcome in outcomes]

    def keys(self, who, *, repair=None):
        """The requests to a role; repair: of them those that tell what was wrong with an answer, or those that do not."""
        return [key for key, messages in self.asked.items() if role(messages) == who and repair in (None, is_repair(messages))]


def role(messages):
    return EVALUATOR if '"participants"' in messages[0]["content"] else ACTOR


def is_repair(messages):
    return messages[-1]["content"].startswith("This answer cannot be used")


def evaluation(scores):
    return {
        f"agent_{number}": {name: {"reasoning": f"so {name}", "score": score} for name, score in one.items()} for number, one in enumerate(scores, 1)
    }


class Evening:
    """What one process does: its clients, and all of the conversations."""

    def __init__(self, server, folder, task_set, *, mode=None):
        time = JumpingTime()
        self.cache, self.budget = ReplyCache(folder / "cache.sqlite"), Budget()
        common = {"model": "m", "base_url": server.url, "retries": TRIES - 1, "breaker_failures": 10_000, "structured": "schema"}
        self.actor, self.evaluator = (
            ApiClient(ApiSettings(**common, temperature=heat), cache=self.cache, budget=self.budget, clock=time.clock) for heat in (0.7, 0.0)
        )
        acting, strategist = OpenAIActor(self.actor, "m"), Strategist()
        if mode is not None:
            acting, strategist = acting.without_strategist(mode), Silence()
        self.player = Player(strategist, strategist, acting, Sampling(), 0, "step-0", evaluator=OpenAIEvaluator(self.evaluator, "m"))
        self.episodes = episodes_of_evaluation([task_set], opponent=SELF)

    def play(self):
        """Episode → the trajectories of its two seats."""
        try:
            played = asyncio.run(play_episodes(self.player, self.episodes, at_once=12, on_finish=lambda trajectories: None))
        finally:
            self.cache.close()
            self.budget.close()
        pairs = collections.defaultdict(list)
        for trajectory in played:
            pairs[trajectory.extra["index"]].append(trajectory)
        assert all([one.seat for one in pair] == ["0", "1"] for pair in pairs.values())
        return [pairs[index] for index in sorted(pairs)]


@pytest.fixture(scope="module")
def task_set(sotopia_data):  # noqa: F811
    options = {"data": str(sotopia_data)}
    sample = envs.make("sotopia", **options).tasks("all")[::EVERY]
    return TaskSet("sotopia", 1.0, "generated:train", "all", [], sample, load("sotopia", "full"), 10, options, max_words=10)


@pytest.mark.slow
def test_conversations_with_faults_of_every_kind_end_scored_or_masked(task_set, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultySotopia(faults=0.22, useless=0.25, useless_scores=0.6) as server:
        first = Evening(server, tmp_path, task_set)
        pairs = first.play()
        tries, record = server.tries(), dict(server.record)
    both = [trajectory for pair in pairs for trajectory in pair]
    assert len(pairs) == 24 and len({pair[0].extra["scenario"] for pair in pairs}) > 15

    # The faults of the server are those that were counted, kind by kind.
    injected = collections.Counter(kind for kind in tries if kind in FAULTS)
    assert first.actor.totals.faults + first.evaluator.totals.faults == injected and set(injected) == set(FAULTS)
    assert first.actor.totals.answered + first.evaluator.totals.answered == sum(kind not in FAULTS for kind in tries)

    # Every conversation is scored, both seats of it, or masked, both seats of it, for what the server's record says.
    lost = {who: [key for key in server.keys(who) if record[key][-1] in FAULTS] for who in (ACTOR, EVALUATOR)}
    assert all(len(record[key]) == TRIES for keys in lost.values() for key in keys)
    stubborn = [key for key in server.keys(EVALUATOR) if len(server.asked[key]) == 5 and record[key][-1] == OF_NO_USE]
    by_actor = [pair for pair in pairs if all("actor failed: ApiError" in (one.masked or "") for one in pair)]
    by_evaluator = [pair for pair in pairs if all((one.masked or "").startswith("evaluator openai:m: ") for one in pair)]
    scored = [pair for pair in pairs if all(one.masked is None for one in pair)]
    assert len(by_actor) + len(by_evaluator) + len(scored) == 24
    assert len(by_actor) == len(lost[ACTOR]) > 0 and len(by_evaluator) == len(lost[EVALUATOR]) + len(stubborn) and min(len(stubborn), len(lost[EVALUATOR])) > 0 and len(scored) > 8

    # Scores are those that the server gave, and a masked seat has none.
    told = collections.Counter(json.dumps(scores) for scores in server.scores)
    assert told == collections.Counter(json.dumps([one.extra["scores"] for one in pair]) for pair in scored)
    assert all("scores" not in one.extra for pair in (*by_actor, *by_evaluator) for one in pair)
    for pair in scored:
        for one in pair:
            assert one.outcome == one.extra["scores"]["goal"] / 10 and one.success == (one.extra["scores"]["goal"] >= 5)
            assert one.extra["evaluator"]["name"] == "openai:m" and one.extra["evaluator"]["reasons"]["goal"] == "so goal"
    goals = values_of(both, "sotopia", "goal")
    by_hand = np.mean([(one["goal"] + other["goal"]) / 2 for one, other in server.scores])
    assert len(goals) == len(scored) and estimate(list(goals.values())).mean == pytest.approx(by_hand)

    # Answers that are no action are mended once, and counted; then the action is none.
    repairs = server.keys(ACTOR, repair=True)
    unread = [key for key in repairs if record[key][-1] == OF_NO_USE]
    assert sum(one.extra["actions_asked_again"] for one in both) == first.actor.totals.asked_again == len(repairs) > 20
    assert sum(one.extra["actions_unread"] for one in both) == len(unread) > 5
    usable = sum(record[key][-1] == ANSWERED for key in server.keys(ACTOR))
    assert sum(len(one.turns) for one in both) == usable + len(unread)
    assert all(one.extra["illegal_actions"] == 0 and Action.parse(turn.action) for one in both for turn in one.turns)
    assert first.evaluator.totals.asked_again == len(server.keys(EVALUATOR, repair=True)) > 0

    # No seat's actor ever read what is the other's alone.
    environment = task_set.make()
    combinations = {task.id.rpartition("/")[0]: environment.environment.combination(task.combination) for task in task_set.held_out}
    for key in server.keys(ACTOR):
        messages = server.asked[key]
        (whose,) = [one for one in both if messages[2]["content"].startswith(one.first_observation)]
        characters = combinations[task_of(whose)].characters
        own, other = (characters[int(whose.seat) ^ flip].secret for flip in (0, 1))
        assert own in messages[2]["content"] and not any(other in message["content"] for message in messages)

    # A second start with a sound server asks only for what nobody answered, and what follows from it; what was scored stays.
    with FaultySotopia(faults=0.0) as server:
        second = Evening(server, tmp_path, task_set)
        again = second.play()
        assert server.record.keys() & {key for key, outcomes in record.items() if outcomes[-1] not in FAULTS} == set()
    assert [pair for pair in again if pair in scored] == scored
    assert sum(pair[0].masked is None for pair in again) == 24 - len(stubborn)  # whose answers are in the cache, of no use as ever

    # A third asks nothing at all.
    with FaultySotopia(faults=1.0) as server:
        third = Evening(server, tmp_path, task_set)
        assert third.play() == again and server.tries() == []
        assert third.actor.totals.cached == third.actor.totals.calls > 0 and third.evaluator.totals.cached == third.evaluator.totals.calls > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "react"])
def test_actors_alone(task_set, tmp_path, monkeypatch, mode):
    """Six combinations without a strategist: no strategy is asked about, and in react each action comes with the actor's own."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultySotopia(faults=0.0) as server:
        answer = server._action
        server._action = lambda chance: answer(chance).replace("{", '{"strategy": "Be brief.", ', 1) if mode == "react" else answer(chance)
        pairs = Evening(server, tmp_path, TaskSet(**{**vars(task_set), "held_out": task_set.held_out[:6]}), mode=mode).play()
        asked = [server.asked[key] for key in server.keys(ACTOR)]
    assert len(pairs) == len(server.scores) == 6 and all(one.masked is None and one.extra["scores"] for pair in pairs for one in pair)
    assert len(asked) == sum(len(one.turns) for pair in pairs for one in pair) > 40
    assert not any("<strategy>" in message["content"] for messages in asked for message in messages)
    answers = [json.loads(message["content"]) for messages in asked for message in messages[3:] if message["role"] == "assistant"]
    assert answers and all((answer.pop("strategy", None) == "Be brief.") == (mode == "react") for answer in answers)
    assert all(turn.tokens == [] and set(json.loads(turn.action)) == {"action_type", "argument"} for pair in pairs for one in pair for turn in one.turns)


@pytest.mark.slow
def test_the_command_evaluates_by_dimension_and_scenario(sotopia_data, tmp_path, monkeypatch):  # noqa: F811
    """Eight combinations, the actor alone at both seats: figures from what the server said, also by hand; the same command again asks nothing."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = get_defaults()
    for name in config.environments:
        config.environments[name].share = float(name == "sotopia")
    config.environments.sotopia.update(prompt="full", eval_split="all", options={"data": str(sotopia_data)})
    config.update(actor="openai", evaluator="openai")
    with FaultySotopia(faults=0.0) as server:
        for section in (config.actor_api, config.evaluator_api):
            section.update(model="m", base_url=server.url, price_per_million_prompt=1e5, max_tokens=4096)
        options = Options("none", tasks=8, output=str(tmp_path / "e"), partner=SELF)
        Evaluation(config, options, StopRequest()).everything()
        asked, scores = len(server.tries()), server.scores
    rows = {row["figure"]: row for row in json.loads((tmp_path / "e" / "results.json").read_text())["rows"]}
    what = json.loads((tmp_path / "e" / "evaluation.json").read_text())["what"]
    assert what["evaluator"] == "openai" and what["evaluator_settings"]["evaluator_api.temperature"] == 0.0
    assert len(scores) == rows["goal"]["n"] and rows["goal"]["episodes"] == 2 * len(scores) and rows["goal"]["masked"] == 0
    for name in DIMENSIONS:
        assert rows[name]["mean"] == pytest.approx(np.mean([one[name] for pair in scores for one in pair])), name
        assert rows[name]["low"] <= rows[name]["mean"] <= rows[name]["high"]
    assert rows["overall"]["mean"] == pytest.approx(np.mean([np.mean(list(one.values())) for pair in scores for one in pair]))
    assert rows["goal"]["money"] == pytest.approx(asked)  # ten tokens a request at a tenth each: the evaluator's requests cost, too
    with open(tmp_path / "e" / "scenarios.csv", newline="") as file:
        scenarios = [row for row in csv.DictReader(file) if row["figure"] == "goal"]
    assert sum(int(row["n"]) for row in scenarios) == len(scores) and len(scenarios) > 4
    with FaultySotopia(faults=1.0) as server:
        for section in (config.actor_api, config.evaluator_api):
            section.base_url = server.url
        Evaluation(config, options, StopRequest()).everything()
        assert server.tries() == []


def test_without_an_evaluator_they_are_refused_before_anything_is_made(sotopia_data, tmp_path):  # noqa: F811
    config = get_defaults()
    for name in config.environments:
        config.environments[name].share = float(name == "sotopia")
    config.environments.sotopia.options = {"data": str(sotopia_data)}
    config.workdir = str(tmp_path / "run")
    for split in ("all", "hard"):
        with pytest.raises(UserError, match=rf"no rule scores .* split {split}: set --config\.evaluator=openai"):
            Evaluation(config, Options("vanilla", split=split, tasks=2, output=str(tmp_path / "e")), StopRequest())
    config.environments.sotopia.train_split = "hard"
    with pytest.raises(UserError, match="no rule scores .* split hard"):
        Run(config, StopRequest())
    assert list(tmp_path.iterdir()) == []
