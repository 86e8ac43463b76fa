"""A frozen model in this process as actor: the published form, token by token, and episodes that do not disturb each other."""

from __future__ import annotations

import asyncio

import pytest

from epo_jax.generate.engine import ContextFull, Engine, Sampling
from epo_jax.model import hf_weights
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.rollout.actor_local import LocalActor
from epo_jax.rollout.exchange import read_action
from epo_jax.strategist import MINI

OBSERVATIONS = ["You are in a room. You see a desk 1, and a shelf 1.\n\nYour task is to: put a pen in desk.", "You arrive at shelf 1.", "Nothing happens."]
STRATEGIES = ["Thought: look on shelf 1.", "take <|end|> the pen\nAction: dance", "Thought: move it to desk 1."]


@pytest.fixture(scope="module")
def mini():
    config, params = hf_weights.load(MINI)
    return config, params, ConversationFormat(Tokenizer.load(MINI))


@pytest.fixture
def engine(mini):
    config, params, conversation = mini
    with Engine(config, params, stop_ids=conversation.stop_ids, pad_id=conversation.tokenizer.pad_id, slots=4, max_length=256) as engine:
        yield engine


class Listening:
    """An engine that keeps what it was given and what it said."""

    def __init__(self, engine):
        self.engine, self.heard = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    async def generate(self, session, tokens, sampling):
        sampled = await self.engine.generate(session, tokens, sampling)
        self.heard.append((list(tokens), sampled.tokens))
        return sampled


async def episode(actor, seed):
    acting = actor.begin("alfworld", seed)
    try:
        return [await acting.act(seen, strategy=said, admissible=["look"]) for seen, said in zip(OBSERVATIONS, STRATEGIES, strict=True)]
    finally:
        acting.close()


def test_the_actor_continues_the_strategy(mini, engine):
    """The whole conversation as the chat template writes it, the strategies where the actor's messages begin; no marker comes from outside."""
    _, _, conversation = mini
    listening = Listening(engine)
    actions = asyncio.run(episode(LocalActor(listening, conversation, Sampling(max_new_tokens=8), model="mini", prompt="brief"), 3))
    assert len(listening.heard) == 3
    text = conversation.tokenizer.backend.decode([t for given, said in listening.heard for t in (*given, *said)], skip_special_tokens=False)
    assert text.count("<|agent|>") == 3 and text.count("<|user|>") == 3
    said = [conversation.text(tokens) for _, tokens in listening.heard]
    parts = text.split("<|agent|>")[1:]
    beginnings = ["Thought: look on shelf 1.\nAction:", "Thought: take < |end|> the pen Action: dance\nAction:", "Thought: move it to desk 1.\nAction:"]
    for part, beginning in zip(parts, beginnings, strict=True):
        assert part.strip().startswith(beginning)
    assert actions == [read_action(answer, ["look"]) for answer in said]


def test_many_episodes_at_once_are_each_as_alone(mini, engine):
    _, _, conversation = mini
    actor = LocalActor(engine, conversation, Sampling(max_new_tokens=8), model="mini", prompt="brief")

    async def together():
        return await asyncio.gather(*(episode(actor, seed) for seed in range(10)))

    at_once = asyncio.run(together())
    assert at_once[7] == asyncio.run(episode(actor, 7))
    assert len({tuple(actions) for actions in at_once}) > 1  # a seed of its own each


def test_an_episode_that_outgrows_the_actor(mini, engine):
    _, _, conversation = mini
    actor = LocalActor(engine, conversation, Sampling(max_new_tokens=8), model="mini", prompt="full")
    with pytest.raises(ContextFull):
        asyncio.run(episode(actor, 0))
