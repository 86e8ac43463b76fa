"""Which actor and judge a run gets, what is said of one that cannot be, what they cost; and whole runs with them."""

from __future__ import annotations

import asyncio
import functools
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from configs.alfshop import get_config
from epo_jax import partners
from epo_jax.api.budget import Budget
from epo_jax.api.cache import Reply, ReplyCache
from epo_jax.api.client import ApiError
from epo_jax.errors import UserError, all_or_what_is_missing
from epo_jax.interrupt import StopRequest
from epo_jax.partners import ApiClients
from epo_jax.run_folder import RunFolder
from epo_jax.train import Run
from epo_jax.trajectory import read_jsonl
from tests.api import scripted_server as give
from tests.api.scripted_server import ScriptedServer
from tests.test_faulty_round import FaultyModel
from tests.tiny_run import MODEL, metrics

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TINY = MODEL | {
    "model.compute_dtype": "float32",
    "model.architecture.tokenizer_games": 20,
    "environments.alfworld.train_split": "generated:train",
    "environments.alfworld.eval_split": "generated:eval",
    "environments.alfworld.max_turns": 2,
    "environments.alfworld.prompt": "brief",
    "environments.webshop.train_split": "generated:train",
    "environments.webshop.eval_split": "generated:eval",
    "environments.webshop.max_turns": 2,
    "environments.webshop.prompt": "brief",
    "environments.webshop.options.pages": "brief",
    "rollout.episodes": 8,
    "rollout.slots": 8,
    "rollout.max_context": 512,
    "rollout.max_strategy_tokens": 8,
    "learn.rows": 8,
    "warm_start.rows": 8,
    "learn.accumulation": 1,
    "learn.epochs": 1,
    "learn.max_length": 512,
    "learn.length_buckets": (512,),
    "checkpoint.every_steps": 0,
    "rounds": 1,
    "evaluate.tasks": 2,
}


def gpt(folder, **changes):
    config = get_config("gpt")
    config.workdir = str(folder)
    config.update_from_flattened_dict(TINY | changes)
    return config


# --- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "^the model gpt-4o-2024-08-06 .*needs a key[^;]*OPENAI_API_KEY[^;]*$"),
        ({"judge": "nobody", "actor": "literal"}, "no judge 'nobody'.*graded, openai, progress, verifier"),
        ({"actor": "oracle", "judge": "progress"}, "unknown actor 'oracle'.*literal, local, openai"),
        ({"actor": "local", "judge": "progress", "local_actor.source": "weights/none"}, "no model weights at weights/none"),
        ({"actor": "local", "judge": "progress", "local_actor.source": "random"}, "local_actor.source is random"),
        ({"actor": "local", "judge": "progress", "local_actor.prompt": "long"}, "full or brief"),
        ({"actor": "openai", "judge": "progress", "actor_api.model": " "}, "actor_api.model is empty"),
        ({"actor": "literal", "judge_api.base_url": "ftp://x"}, "not the address of a server"),
        ({"api.offline": True, "api.cache": "nowhere.sqlite"}, "nowhere.sqlite"),
        ({"evaluator": "nobody", "actor": "literal", "judge": "progress"}, "no evaluator 'nobody'.*none, openai"),
        ({"evaluator": "openai", "actor": "literal", "judge": "progress"}, "gpt-4o-2024-08-06.*needs a key.*OPENAI_API_KEY"),
        ({"evaluator": "openai", "actor": "literal", "judge": "progress", "evaluator_api.timeout_s": 0.0}, "evaluator_api.timeout_s"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(changes, words, monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    config = gpt(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=words) as told:
        checks = (partners.check_actor, partners.check_judge, partners.check_evaluator)
        all_or_what_is_missing(*(functools.partial(check, config) for check in checks))
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


def test_the_published_setting_says_all_that_it_misses(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)
    config = get_config("gpt")
    config.workdir = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"no model weights at weights/Meta-Llama-3-8B-Instruct.*ALFWORLD_DATA.*needs a key") as told:
        Run(config, StopRequest())
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


def test_limits_and_prices_may_change_and_models_may_not(tmp_path):
    RunFolder.open(gpt(tmp_path / "run"))
    changed = {"actor_api.budget_money": 5.0, "actor_api.price_per_million_prompt": 2.5, "judge_api.base_url": "http://127.0.0.1:1/v1"}
    assert RunFolder.open(gpt(tmp_path / "run", **changed)).resumed
    for name, value in (("actor_api.model", "other"), ("judge_api.temperature", 0.0), ("judge", "graded"), ("actor", "literal"), ("evaluator", "openai")):
        with pytest.raises(UserError, match=name):
            RunFolder.open(gpt(tmp_path / "run", **{name: value}))


def test_figures_are_those_since_the_last_time(tmp_path):
    with ScriptedServer() as server:
        server.then(give.good("a"), give.status(500), give.good("b"))
        config = gpt(tmp_path, **{"actor_api.base_url": server.url, "judge_api.base_url": server.url})
        clients = ApiClients(config, tmp_path, {"actor": "actor_api", "judge": "judge_api"})
        assert "actor 0 calls; judge 0 calls" == clients.note()

        async def ask(role, *words):
            for word in words:
                await clients[role].complete([{"role": "user", "content": word}])

        asyncio.run(ask("actor", "x", "x", "y"))
        asyncio.run(ask("judge", "z"))
        first, second = clients.figures(), clients.figures()
        clients.close()
    assert (first["api_actor_calls"], first["api_actor_cached"], first["api_actor_retries"], first["api_actor_fault_server_error"]) == (3, 1, 1, 1)
    assert first["api_actor_cached_share"] == pytest.approx(1 / 3) and first["api_judge_calls"] == 1
    assert (first["api_actor_prompt_tokens"], first["api_actor_completion_tokens"], first["api_spent_tokens"]) == (20, 10, 45)
    assert second["api_actor_calls"] == 0 and second["api_spent_tokens"] == 45
    assert (tmp_path / partners.CACHE_NAME).is_file() and not ApiClients(config, tmp_path / "none", {}).note()


def test_the_evaluator_is_made_where_one_is_named(tmp_path):
    config = gpt(tmp_path, actor="literal", judge="progress")
    nothing = ApiClients(config, tmp_path / "none", partners.api_roles(config, "actor", "judge", "evaluator"))
    assert partners.make_evaluator(config, nothing) is None and not (tmp_path / "none").exists() and config.evaluator_api.temperature == 0.0
    with ScriptedServer() as server:
        config.update_from_flattened_dict({"evaluator": "openai", "evaluator_api.base_url": server.url, "evaluator_api.model": "m"})
        roles = partners.api_roles(config, "actor", "judge", "evaluator")
        assert roles == {"evaluator": "evaluator_api"}
        clients = ApiClients(config, tmp_path, roles)
        evaluator = partners.make_evaluator(config, clients)
        with pytest.raises(ApiError, match="no usable answer in 3 attempts"):  # the server says "ok"
            asyncio.run(evaluator.score("Turn #0: A did nothing", ("A", "B")))
        figures = clients.figures()
        clients.close()
    assert evaluator.name == "openai:m" and (figures["api_evaluator_calls"], figures["api_evaluator_asked_again"]) == (3, 2)


def test_a_cache_that_is_shipped_replays_without_a_server(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    question = [{"role": "user", "content": "x"}]
    with ScriptedServer() as server:
        online = ApiClients(gpt(tmp_path, **{"judge_api.base_url": server.url}), tmp_path, {"judge": "judge_api"})
        said = asyncio.run(online["judge"].complete(question))
        online.close()
    config = gpt(tmp_path, **{"api.offline": True, "api.cache": str(tmp_path / partners.CACHE_NAME)})
    partners.check_judge(config)
    offline = ApiClients(config, tmp_path, {"judge": "judge_api"})
    assert asyncio.run(offline["judge"].complete(question)).text == said.text
    with pytest.raises(ApiError):
        asyncio.run(offline["judge"].complete([{"role": "user", "content": "something new"}]))
    offline.close()


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_a_frozen_copy_of_its_strategist_as_actor(tmp_path):
    """The strategist learns, and its arrays are donated; the actor keeps the weights from before."""
    config = get_config()
    config.workdir = str(tmp_path / "run")
    changes = {"actor": "local", "local_actor.prompt": "brief", "local_actor.max_context": 512, "local_actor.max_action_tokens": 8, "rounds": 2}
    config.update_from_flattened_dict(TINY | changes | {"evaluate.every": 2, "learn.learning_rate": 1e-2, "learn.entropy_weight": 0.01})
    run = Run(config, StopRequest())
    run.everything()
    for round in (0, 1):
        played = read_jsonl(run.folder.trajectories(round))
        assert len(played) == 8 and all(t.masked is None and t.actor == "local:random" for t in played)
        assert any(t.extra["illegal_actions"] for t in played)  # a random model says nothing that is possible
    assert all(row["illegal_action_share"] > 0.5 for row in metrics(run.folder.path, "round"))


class Deadly(FaultyModel):
    """Kills the process that asks, when it has answered so often, and keeps silent from then on until the next one is started."""

    def __init__(self):
        super().__init__(0.0)
        self.process, self.left = None, 0

    def _decide(self, body):
        if self.left == 0:
            self.process.send_signal(signal.SIGKILL)
            return give.hang()
        self.left -= 1
        return super()._decide(body)


def test_another_number_of_processes_finds_what_the_others_asked_and_spent(tmp_path, monkeypatch):
    """Three processes' files, then one process: it asks nothing that any of them had asked, and its budget is what they left."""
    for process in range(3):
        cache = ReplyCache(tmp_path / f"api_cache.process_{process}.sqlite")
        cache.store(f"key {process}", Reply(f"reply {process}", 1, 1, False, "stop", None), "model")
        cache.close()
        budget = Budget(path=tmp_path / f"api_spent.process_{process}.sqlite")
        asyncio.run(budget.reserve(10, 0.1)).settle(10, 0.1)
        budget.close()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = gpt(tmp_path / "run", **{"actor_api.budget_tokens": 100})
    clients = ApiClients(config, tmp_path, {"actor": "actor_api"})
    assert [clients.cache.find(f"key {process}").text for process in range(3)] == ["reply 0", "reply 1", "reply 2"]
    assert clients.budget.limit_tokens == 70 and clients.figures()["api_spent_tokens"] == 30
    clients.close()


def command(folder, url, **changes):
    settings = TINY | {"actor_api.base_url": url, "judge_api.base_url": url, "actor_api.concurrency": 1, "judge_api.concurrency": 1} | changes
    return [
        sys.executable, "-m", "epo_jax.train", f"--config={REPOSITORY}/configs/alfshop.py:gpt", f"--config.workdir={folder}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip


def process_environment():
    """One device, and no key: a server on this machine needs none."""
    return {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "XLA_FLAGS")} | {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.slow
def test_killed_in_the_middle_it_asks_for_nothing_that_was_answered(tmp_path):
    """The published setting against a local server: killed while it plays, killed while it judges, then to its end."""
    environment = process_environment()
    with Deadly() as server:
        for left in (11, 15, -1):  # 8 requests of the first evaluation, 16 of the round's actors, 8 of its judge, and the last evaluation's
            server.left = left
            arguments = command(tmp_path / "run", server.url)
            server.process = subprocess.Popen(arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            out, err = server.process.communicate(timeout=600)
            assert server.process.returncode == (-signal.SIGKILL if left > 0 else 0), out + err
        assert all(outcomes == ["answered"] for outcomes in server.record.values()), server.record
        assert len(server.requests) == len(server.record) + 2 >= 34  # the two on which it was killed were never answered
    (row,) = metrics(tmp_path / "run", "round")
    assert row["masked"] == row["judge_failed"] == 0 and row["api_spent_tokens"] >= 32 * 15
    assert row["api_judge_calls"] == 8 and 0 < row["api_judge_cached_share"] < 1 and row["illegal_action_share"] is not None
    judged = read_jsonl(tmp_path / "run" / "trajectories" / "round_000.jsonl")
    assert all(t.judge == t.actor == "openai:gpt-4o-2024-08-06" and t.extra["judge"]["reasoning"] for t in judged)


@pytest.mark.slow
def test_a_run_whose_budget_is_spent_goes_on_with_more(tmp_path, monkeypatch):
    """One sentence, and nothing masked; then the same with a larger budget, which pays for nothing twice."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultyModel(0.0) as server:
        server.prompt_tokens = 2_000
        addresses = {f"{role}_api.{name}": value for role in ("actor", "judge") for name, value in (("base_url", server.url), ("concurrency", 1))}
        with pytest.raises(UserError, match=r"budget is spent.*raise budget_tokens.*run; the same command continues\.$") as told:
            Run(gpt(tmp_path / "run", **addresses, **{"actor_api.budget_tokens": 40_000}), StopRequest()).everything()
        assert "\n" not in str(told.value)
        before = len(server.requests)
        assert 8 < before < 20
        assert all(t.masked is None for path in (tmp_path / "run").glob("*/round_*.jsonl") for t in read_jsonl(path))
        run = Run(gpt(tmp_path / "run", **addresses, **{"actor_api.budget_tokens": 3_000_000}), StopRequest())
        run.everything()
        assert len(server.requests) > before and all(outcomes == ["answered"] for outcomes in server.record.values())
        assert run.partners.clients.budget.spent_tokens == 2_005 * len(server.requests)
