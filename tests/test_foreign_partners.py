"""Actor and judge behind a real server that this project did not write."""

from __future__ import annotations

import asyncio

import pytest

from configs.defaults import get_defaults
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings
from epo_jax.generate.engine import Sampling
from epo_jax.reward import judge
from epo_jax.reward.judge_openai import OpenAIJudge
from epo_jax.rollout import tasks
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.rollout.play import Player, episodes_of_evaluation, play_episodes
from tests.foreign_server import ForeignServer
from tests.test_faulty_round import Strategist


@pytest.mark.slow
def test_episodes_with_a_foreign_server_end_scored_or_masked_and_are_asked_for_once(foreign_server: ForeignServer, tmp_path, monkeypatch) -> None:
    """Both environments. The served model writes no JSON, so the judge asks again, after the server refused a schema, and masks in the end."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = get_defaults()
    for environment in config.environments.values():
        environment.update(train_split="generated:train", eval_split="generated:eval", max_turns=2)
    config.evaluate.tasks = 2
    episodes = episodes_of_evaluation(tasks.load(config))
    settings = ApiSettings(model=foreign_server.model, base_url=foreign_server.base_url, max_tokens=16, temperature=0.0, timeout_s=300.0)

    def play_and_judge():
        cache, budget = ReplyCache(tmp_path / "cache.sqlite"), Budget()
        acting, judging = (ApiClient(settings, cache=cache, budget=budget) for _ in range(2))
        player = Player(Strategist(), Strategist(), OpenAIActor(acting, "theirs"), Sampling(), 0, "step-0")

        async def everything():
            played = await play_episodes(player, episodes, at_once=4, on_finish=lambda trajectory: None)
            return played, await judge.judge_all(OpenAIJudge(judging, "theirs"), played)

        played, counts = asyncio.run(everything())
        cache.close()
        return played, counts, acting.totals.as_dict(), judging.totals.as_dict()

    played, counts, acting, judging = play_and_judge()
    assert [trajectory.environment for trajectory in played] == ["alfworld"] * 2 + ["webshop"] * 2
    assert acting["calls"] == acting["answered"] == sum(len(trajectory.turns) for trajectory in played) == 8 and acting["failed"] == 0
    assert counts.scored + counts.failed == 4 and counts.failed == sum(trajectory.masked is not None for trajectory in played)
    assert judging["answered"] == judging["calls"] >= 4 and acting["prompt_tokens"] > 0
    again, counts_again, acting_again, judging_again = play_and_judge()
    assert [trajectory.turns for trajectory in again] == [trajectory.turns for trajectory in played] and counts_again == counts
    assert acting_again["tries"] == judging_again["tries"] == 0
    assert acting_again["cached"] == acting["calls"] and judging_again["cached"] == judging["calls"]
