"""A demonstration as a trajectory: the words that the expert said are the tokens that a clone learns, and its outcome is the game's."""

from __future__ import annotations

import pytest

from configs import sotopia
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.rollout import tasks
from epo_jax.rollout.demonstrations import demonstrate
from epo_jax.strategist import MINI


@pytest.mark.parametrize("number", [0, 1, 26, 41])
def test_a_seat_of_sotopia_is_demonstrated(number: int) -> None:
    (task_set,) = tasks.load(sotopia.get_config())
    conversation = ConversationFormat(Tokenizer.load(MINI))
    trajectory = demonstrate(task_set, task_set.train[number], seed=number, conversation=conversation)
    assert trajectory == demonstrate(task_set, task_set.train[number], seed=number, conversation=conversation)

    played = task_set.make()
    assert played.reset(task_set.train[number]) == trajectory.first_observation
    for turn in trajectory.turns:
        assert turn.strategy == f"Strategy: {turn.action}" and len(turn.action.split()) <= 10
        assert played.step(turn.action)[0] == turn.observation
        assert conversation.text(turn.tokens) == turn.strategy and turn.advantage == 1.0
    assert (played.outcome or 0.0, played.success) == (trajectory.outcome, trajectory.success)
