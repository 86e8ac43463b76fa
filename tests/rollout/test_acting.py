"""A policy that acts itself: what it reads, how its words become actions, and the demonstrations that it learns them from."""

from __future__ import annotations

import asyncio

import pytest

import envs
from envs import ANYTHING
from epo_jax.errors import UserError
from epo_jax.rollout import prompts
from epo_jax.rollout.acting import ActingPolicy
from epo_jax.rollout.exchange import read_action

ADMISSIBLE = ["go to desk 1", "look", "open drawer 2"]


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ("go to desk 1", "go to desk 1"),
        ("Open drawer 2.", "open drawer 2"),
        ("Thought: the pen may be there.\nAction: go to desk 1", "go to desk 1"),
        ("fly to the moon", "fly to the moon"),  # the environment says that nothing happens
        ("", ""),
    ],
)
def test_words_become_actions(words: str, action: str) -> None:
    assert asyncio.run(ActingPolicy().begin("alfworld", 0).act("", strategy=words, admissible=ADMISSIBLE)) == action


def test_where_anything_can_be_said_the_words_are_the_action() -> None:
    words = "Strategy: I offer price $50.\nOr less."
    assert asyncio.run(ActingPolicy().begin("sotopia", 0).act("", strategy=words, admissible=[ANYTHING])) == words


@pytest.mark.parametrize("environment", ["alfworld", "webshop"])
@pytest.mark.parametrize("style", ["act", "act_brief"])
def test_an_expert_that_acts_itself_wins_by_what_its_demonstration_says(environment: str, style: str) -> None:
    """Its turns, read as a policy's words are read, are its actions; played again they give the same observations."""
    read = prompts.load(environment, style)
    world, again = envs.make(environment), envs.make(environment)
    won = 0
    for task in world.tasks("generated:train")[:8]:
        world.reset(task), again.reset(task)
        for strategy, action, observation in world.demonstration(0, max_turns=20, actor=None):
            said = read.demonstrated(strategy, action)
            assert said == (f"{strategy}\nAction: {action}" if style == "act" else action)
            seen, _, _, _ = again.step(read_action(said, again.admissible))
            assert seen == observation == read.after(action, observation)
        won += again.success
    assert won >= 7


def test_the_instruction_is_there_or_its_absence_is_told() -> None:
    opening = prompts.load("alfworld", "act").opening("Your task is to: put a pen in dresser.")
    assert [message["role"] for message in opening] == ["user", "assistant", "user"]
    assert 'begins with "Action:"' in opening[0]["content"] and "adviser" not in opening[0]["content"]
    assert prompts.load("webshop", "act_brief").opening("task") == [{"role": "user", "content": "task"}]
    with pytest.raises(UserError, match="act_brief"):
        prompts.load("sotopia", "act")
