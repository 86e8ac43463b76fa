"""A round of 64 episodes whose actor and judge sit behind failing servers: real sockets, and every count against the servers' own record."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import re

import pytest

from configs.defaults import get_defaults
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient, BudgetSpent
from epo_jax.api.settings import ApiSettings
from epo_jax.generate.engine import Sampled, Sampling
from epo_jax.report.metrics import describe
from epo_jax.reward import judge
from epo_jax.reward.judge_openai import OpenAIJudge
from epo_jax.rollout import tasks
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.rollout.play import Episode, Player, play_episodes
from tests.api import scripted_server as give
from tests.api.scripted_server import ScriptedServer
from tests.api.scripted_time import JumpingTime

EPISODES, TURNS, TRIES = 64, 4, 3
FAULTS = {  # how the client counts it: what the server does
    "rate_limited": [give.too_many(), give.too_many("2")],
    "server_error": [give.status(500)],
    "connection": [give.reset()],
    "timeout": [give.hang()],
    "half_body": [give.half_body()],
    "invalid_json": [give.invalid_json()],
    "wrong_shape": [give.wrong_shape()],
    "no_choice": [give.no_choice()],
    "too_long": [give.too_long()],
}
KINDS = [kind for kind in FAULTS if kind != "too_long"] * 4 + ["too_long"]  # ten megabytes take their time


class Strategist:
    """In place of the engine and its words: a strategy that names the episode and the turn, so that no two requests are equal."""

    stop_ids = frozenset({0})

    def open(self, seed):
        return {"seed": seed, "turn": 0}

    async def generate(self, session, tokens, sampling):
        line = f"Thought: {session['seed']} says to look, turn {session['turn']}."
        session["turn"] += 1
        return Sampled(tokens=[ord(c) for c in line], logprobs=[-0.5] * len(line), stop_reason="stop")

    def close(self, session):
        pass

    def start(self, messages):
        return [ord(c) for message in messages for c in message["content"]]

    def reply_and_continue(self, sampled, text):
        return [ord(c) for c in text]

    def text(self, ids):
        return "".join(map(chr, ids))


class NamedClient(ApiClient):
    """Names each call's task by its request, so that scripted time knows whose time is over when the server hangs."""

    async def complete(self, messages, *, schema=None, salt=""):
        asyncio.current_task().set_name(address(messages))
        return await super().complete(messages, schema=schema, salt=salt)


def address(messages):
    return hashlib.sha256(json.dumps([message["content"] for message in messages]).encode()).hexdigest()


class FaultyModel(ScriptedServer):
    """Answers as actor and as judge. `share` of the tries fail; which ones is decided by the request and its number alone. `record`: what it did."""

    def __init__(self, share):
        super().__init__()
        self.share, self.otherwise, self.prompt_tokens = share, self._decide, 10
        self.record = collections.defaultdict(list)  # request → what each of its tries got

    def _decide(self, body):
        key = address(body["messages"])
        seen = self.record[key]
        chance = hashlib.sha256(f"{key}/{len(seen)}".encode()).digest()
        if int.from_bytes(chance[:4], "big") < self.share * 2**32:
            kind = KINDS[chance[4] % len(KINDS)]
            seen.append(kind)
            return FAULTS[kind][chance[5] % len(FAULTS[kind])]
        last = body["messages"][-1]["content"]
        if "strategist_indexes" not in body["messages"][0]["content"]:
            seen.append("answered")
            if self.share and chance[6] < 13:
                return give.refusal()
            return self._good("Action: fly away" if chance[6] < 64 else "Thought: so.\nAction: look")
        if self.share and chance[6] < 64 and "cannot be used" not in last:
            seen.append("answered, of no use")
            return self._good(['{"indexes": [2], "reasoning": "x"}', "I pick the first.", '{"picks": [1]}'][chance[7] % 3])
        seen.append("answered")
        known = json.loads(re.search(r'"strategist_indexes": (\[.*?\])', body["messages"][0]["content"])[1])
        return self._good(json.dumps({"indexes": known[: chance[7] % 3], "reasoning": "why not"}))

    def _good(self, text):
        return give.good(text, prompt_tokens=self.prompt_tokens)

    def tries(self):
        return [outcome for outcomes in self.record.values() for outcome in outcomes]


class Round:
    """What one process does: its clients, an actor, a judge, and a round of the embedded households."""

    def __init__(self, server, folder, *, budget_tokens=0):
        self.time = JumpingTime()
        server.on_hang = lambda body: self.time.time_out(address(body["messages"]))
        settings = ApiSettings(model="m", base_url=server.url, retries=TRIES - 1, breaker_failures=10_000, concurrency=24)
        self.cache = ReplyCache(folder / "cache.sqlite")
        self.budget = Budget(tokens=budget_tokens, path=folder / "spent.sqlite")
        self.actor, self.judge = (NamedClient(settings, cache=self.cache, budget=self.budget, clock=self.time.clock) for _ in range(2))

    def play_and_judge(self, episodes, finished=None):
        strategist = Strategist()
        player = Player(strategist, strategist, OpenAIActor(self.actor, "m"), Sampling(), 0, "step-0")
        finished = [] if finished is None else finished

        async def everything():
            played = await play_episodes(player, episodes, at_once=32, on_finish=finished.extend)
            return played, await judge.judge_all(OpenAIJudge(self.judge, "m"), played, concurrency=24)

        try:
            return asyncio.run(everything())
        finally:
            self.cache.close()
            self.budget.close()


@pytest.fixture(scope="module")
def episodes():
    config = get_defaults()
    config.environments.webshop.share = 0
    config.environments.alfworld.update(train_split="generated:train", eval_split="generated:eval", max_turns=TURNS)
    config.evaluate.tasks = 1
    (task_set,) = tasks.load(config)
    played = list(task_set.train[:8])
    return [Episode(index, task_set, played[index % 8], seed=1000 + index) for index in range(EPISODES)]


def test_a_round_with_thirty_percent_faults(episodes, tmp_path):
    with FaultyModel(0.3) as server:
        first = Round(server, tmp_path)
        trajectories, counts = first.play_and_judge(episodes)
        record, tries = dict(server.record), server.tries()

    # Every episode is scored or masked, and the injected faults are those that were counted, kind by kind.
    assert len(trajectories) == EPISODES and sum(kind in FAULTS for kind in tries) > 0.25 * len(tries)
    injected = collections.Counter(kind for kind in tries if kind in FAULTS)
    assert first.actor.totals.faults + first.judge.totals.faults == injected and set(injected) == set(FAULTS)
    lost = {key: outcomes for key, outcomes in record.items() if not outcomes[-1].startswith("answered")}
    assert all(len(outcomes) == TRIES for outcomes in lost.values())
    by_actor = [t for t in trajectories if t.masked and t.masked.startswith("actor failed: ApiError")]
    by_judge = [t for t in trajectories if judge.masked_by_judge(t)]
    scored = [t for t in trajectories if t.masked is None]
    assert len(by_actor) + len(by_judge) + len(scored) == EPISODES and len(by_actor) + len(by_judge) == len(lost)
    assert len(by_actor) > 0 and len(by_judge) > 0 and len(scored) > EPISODES // 2
    assert (counts.failed, counts.skipped, counts.scored) == (len(by_judge), len(by_actor), len(scored))
    assert first.actor.totals.failed == len(by_actor) and first.judge.totals.failed == len(by_judge)
    assert all(turn.process_reward is not None for t in scored for turn in t.turns) and all(t.extra["judge"]["reasoning"] for t in scored)
    assert all(turn.process_reward is None for t in (*by_actor, *by_judge) for turn in t.turns)
    assert all(len(t.turns) == TURNS for t in by_judge)  # nothing that was played is lost

    # What was charged is what was answered, each answer once; and answers that name nothing possible are counted.
    answered = [outcome for outcome in tries if outcome.startswith("answered")]
    totals = (first.actor.totals, first.judge.totals)
    assert sum(t.answered for t in totals) == len(answered) and sum(t.prompt_tokens for t in totals) == 10 * len(answered)
    assert first.judge.totals.asked_again == tries.count("answered, of no use")
    illegal = sum(turn.action != "look" for t in scored for turn in t.turns)
    assert 0 < illegal < len(scored) * TURNS and describe(trajectories)["illegal_action_share"] == illegal / (len(scored) * TURNS)

    # A second start with a sound server asks only for what nobody answered, and what follows from it.
    with FaultyModel(0.0) as server:
        second = Round(server, tmp_path)
        again, counts = second.play_and_judge(episodes)
        assert counts.scored == EPISODES
        assert server.record.keys() & {key for key, outcomes in record.items() if outcomes[-1].startswith("answered")} == set()
        assert len(server.tries()) == second.actor.totals.answered + second.judge.totals.answered < 0.2 * len(tries)
        same = {t.seed: t for t in again}
        assert all([u.action for u in t.turns] == [u.action for u in same[t.seed].turns] for t in (*scored, *by_judge))

    # A third asks nothing at all.
    with FaultyModel(1.0) as server:
        third = Round(server, tmp_path)
        assert third.play_and_judge(episodes)[0] == again
        assert server.tries() == [] and third.actor.totals.cached == third.actor.totals.calls > 0
        assert third.judge.totals.cached == third.judge.totals.calls > 0 and third.actor.totals.money == 0
        assert third.budget.spent_tokens == second.budget.spent_tokens


def test_a_spent_budget_stops_and_masks_nothing(episodes, tmp_path):
    """Started again with a larger budget, the round is finished, and what was answered is not asked for again."""
    with FaultyModel(0.0) as server:
        server.prompt_tokens = 2_000
        finished: list = []
        little = Round(server, tmp_path, budget_tokens=40_000)
        with pytest.raises(BudgetSpent, match="raise budget_tokens"):
            little.play_and_judge(episodes[:8], finished)
        assert 20_000 < little.budget.spent_tokens <= 40_000 and all(t.masked is None for t in finished)
        assert little.budget.spent_tokens == 2_005 * len(server.tries())
        enough = Round(server, tmp_path, budget_tokens=400_000)
        _, counts = enough.play_and_judge(episodes[:8])
        assert counts.scored == 8 and enough.budget.spent_tokens == 2_005 * len(server.tries())
        assert all(outcomes.count("answered") == 1 for outcomes in server.record.values())
