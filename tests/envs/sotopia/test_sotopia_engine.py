"""Turns and ends, on all 450 real combinations and by hand."""

from __future__ import annotations

import random

import pytest

from envs.sotopia import generator
from envs.sotopia.action import ACTION_TYPES, Action
from envs.sotopia.engine import Conversation

SPEAK, NONE, LEAVE, ACT = Action("speak", "Hello."), Action("none"), Action("leave"), Action("action", "waits")


def played(combination, actions) -> Conversation:
    conversation = Conversation(combination)
    for action in actions:
        conversation.act(conversation.turn, action)
    return conversation


@pytest.fixture(scope="module")
def talk():
    """A scenario without a game."""
    return next(combination for combination in generator.scenarios() if combination.scenario.game is None)


@pytest.mark.parametrize(
    ("actions", "end"),
    [
        ([SPEAK] * 19, None),
        ([SPEAK] * 20, "max_turns"),
        ([NONE, NONE], None),
        ([NONE, NONE, NONE], "stale"),
        ([NONE, NONE, SPEAK, NONE, NONE], None),
        ([SPEAK, NONE, NONE, NONE], "stale"),
        ([NONE, NONE, ACT, NONE, NONE, NONE], "stale"),
        ([LEAVE], "leave"),
        ([SPEAK, LEAVE], "leave"),
        ([NONE, NONE, LEAVE], "leave"),
        ([SPEAK] * 19 + [LEAVE], "leave"),
    ],
)
def test_ends(talk, actions, end):
    conversation = played(talk, actions)
    assert conversation.end == end and (conversation.turn is None) == (end is not None)


def test_the_wrong_seat_and_the_time_after(talk):
    conversation = Conversation(talk)
    with pytest.raises(ValueError, match="seat 0's turn, not seat 1's"):
        conversation.act(1, SPEAK)
    assert conversation.history == []
    conversation.act(0, LEAVE)
    with pytest.raises(ValueError, match="the conversation is over"):
        conversation.act(1, SPEAK)


def test_rules_hold_on_every_real_combination(real_combinations):
    """Random play: seats take turns, both read the same lines, and it ends for exactly the reasons there are."""
    rng = random.Random(0)
    for combination in real_combinations:
        conversation = Conversation(combination)
        weights = rng.choice(((3, 10, 1, 1, 0.3), (30, 10, 1, 1, 0), (0, 1, 1, 1, 0)))
        while conversation.turn is not None:
            assert conversation.turn == len(conversation.history) % 2
            kind = rng.choices(ACTION_TYPES, weights)[0]
            conversation.act(conversation.turn, Action(kind, "something"))
        kinds = [action.action_type for _, action in conversation.history]
        first, second = conversation.view(0), conversation.view(1)
        assert [first.line(n) for n in range(len(kinds))] == [second.line(n) for n in range(len(kinds))]
        assert len(kinds) <= 20 and "leave" not in kinds[:-1]
        assert all(kinds[n : n + 3] != ["none"] * 3 for n in range(len(kinds) - 3))
        reasons = {"leave": kinds[-1] == "leave", "stale": kinds[-3:] == ["none"] * 3, "max_turns": len(kinds) == 20}
        assert reasons[conversation.end]


def test_the_transcript_is_for_the_evaluator(talk):
    """It holds both private sides, and leaves out turns in which nothing was done, as published."""
    text = played(talk, [SPEAK, NONE, ACT]).transcript()
    assert all(who.secret in text for who in talk.characters)
    assert text.splitlines()[-2:] == [f'Turn #0: {talk.names[0]} said: "Hello."', f"Turn #2: {talk.names[0]} [action] waits"]


def test_a_deal_ends_a_game():
    game = generator.generate(generator.EVALUATION, 0)
    price = game.scenario.game.issues[0].options[3]
    conversation = played(game, [Action("speak", f"I offer price {price}."), Action("speak", "I accept.")])
    assert (conversation.end, conversation.deal) == ("agreement", (3,))
    assert played(game, [SPEAK] * game.scenario.max_turns).end == "max_turns"
