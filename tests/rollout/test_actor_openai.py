"""The actor behind an API, with a scripted client: what it asks, and what it makes of the answers."""

from __future__ import annotations

import asyncio

import pytest

from epo_jax.api.cache import Reply
from epo_jax.api.client import ApiError, BudgetSpent
from epo_jax.rollout.actor_openai import OpenAIActor
from epo_jax.rollout.actors import Actor


class Scripted:
    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def complete(self, messages, *, schema=None, salt=""):
        self.asked.append((list(messages), salt))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer, 1, 1, False, "stop", None)


def acts(client, turns, seed=11):
    actor: Actor = OpenAIActor(client, "gpt")

    async def play():
        acting = actor.begin("alfworld", seed)
        try:
            return [await acting.act(seen, strategy=said, admissible=["look", "go to desk 1"]) for seen, said in turns]
        finally:
            acting.close()

    return asyncio.run(play())


def test_it_remembers_its_episode_and_salts_each_turn():
    client = Scripted("Action: Go to desk 1", "Action: fly")
    assert acts(client, [("a room", "Thought: desk"), ("a desk", "Thought: up")]) == ["go to desk 1", "fly"]
    (first, salt_one), (second, salt_two) = client.asked
    assert (salt_one, salt_two) == ("11/0", "11/1")
    assert [message["content"] for message in second[:4]] == [*(m["content"] for m in first[:2]), "a room", "Thought: desk\nAction: go to desk 1"]
    assert second[-1]["content"].startswith("a desk\n") and "Thought: up" in second[-1]["content"]
    again = Scripted("Action: look")
    acts(again, [("a room", "Thought: desk")], seed=12)
    assert again.asked[0][0] == first and again.asked[0][1] == "12/0"  # the same request, sampled apart


def test_a_refusal_is_an_answer_that_names_nothing():
    client = Scripted(Reply("", 1, 1, False, "stop", "I cannot help with that."))
    assert acts(client, [("a room", "Thought: desk")]) == ["I cannot help with that."]


@pytest.mark.parametrize("error", [ApiError("no answer"), BudgetSpent("spent")])
def test_failures_pass_through(error):
    with pytest.raises(type(error)):
        acts(Scripted(error), [("a room", "Thought: desk")])
