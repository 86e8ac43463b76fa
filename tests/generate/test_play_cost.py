"""What playing costs, in facts that no clock is needed for: tokens read again, and programs compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from configs import alfshop
from epo_jax import strategist as strategists
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.rollout import tasks
from epo_jax.rollout.actors import LiteralActor
from epo_jax.rollout.play import Player, episodes_of_round, play_episodes
from epo_jax.strategist import Strategist
from tools import turn_script


@pytest.fixture(scope="module")
def mini() -> Strategist:
    return strategists.from_checkpoint("mini")


def make_engine(strategist: Strategist, **options) -> Engine:
    return Engine(strategist.config, strategist.params, pad_id=strategist.tokenizer.pad_id, **options)


def test_a_conversation_of_twelve_turns_reads_nothing_twice(mini: Strategist) -> None:
    script = turn_script.record(mini.conversation, episodes=4, turns=12, new_tokens=9, prompt="brief")

    async def converse(engine: Engine, number: int) -> None:
        session = engine.open(number)
        for piece in script.episodes[number].pieces():
            await engine.generate(session, piece, Sampling(max_new_tokens=script.new_tokens))
        engine.close(session)

    async def everything(engine: Engine) -> None:
        await asyncio.gather(*(converse(engine, number) for number in range(4)))

    with make_engine(mini, stop_ids=(), slots=4, max_length=script.longest) as engine:
        asyncio.run(everything(engine))
        stats = engine.stats
    assert stats["decode_tokens"] == script.sampled_tokens
    assert stats["prompt_tokens"] == script.prompt_tokens
    # All that was said to a session once, and of each turn's samples the last, which the next turn reads; decode reads the last token of a prompt.
    once = sum(len(piece) for episode in script.episodes for piece in episode.pieces()) + 4 * 11
    assert stats["prefill_tokens"] <= once - 4 * 12
    assert stats["prefill_tokens"] / stats["prompt_tokens"] <= 0.2


@pytest.fixture(scope="module")
def round_engine(mini: Strategist) -> Iterator[Engine]:
    with make_engine(mini, stop_ids=mini.conversation.stop_ids, slots=8, max_length=512) as engine:
        yield engine


def test_a_round_compiles_a_bounded_number_of_programs_and_the_next_none(mini: Strategist, round_engine: Engine) -> None:
    config = alfshop.get_config()
    config.evaluate.tasks = 1
    for settings in config.environments.values():
        settings.max_turns = 4
    task_sets = tasks.load(config)
    player = Player(round_engine, mini.conversation, LiteralActor(), strategists.sampling(config, 1.0), 0, "0")

    def play() -> list:
        episodes = episodes_of_round(task_sets, count=12, seed=0, round=0)
        return asyncio.run(play_episodes(player, episodes, at_once=8, on_finish=lambda _: None))

    first = play()
    compiled = round_engine.stats["compilations"]
    # Rows come in two sizes, new tokens in four (32 to 256), attended prefixes in two (256, 512): prefill and decode of each.
    assert 0 < compiled <= 2 * 4 * 2 + 2 * 2
    round_engine.update_weights(mini.params, "1")
    second = play()
    assert round_engine.stats["compilations"] == compiled
    assert [[turn.tokens for turn in one.turns] for one in first] == [[turn.tokens for turn in other.turns] for other in second]
