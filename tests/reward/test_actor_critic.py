"""Generalised advantages by hand, their two limits, and what PPO makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.learn import critic
from epo_jax.reward import credit
from epo_jax.reward.actor_critic import estimate_turns
from epo_jax.trajectory import Trajectory, Turn


def episode(values: list[list[float]], outcome: float, process: list[float] | None = None) -> Trajectory:
    """An episode of turns with so many tokens as they have values."""
    process = process or [0.0] * len(values)
    turns = [Turn(prompt_tokens=[1], tokens=[2] * len(v), values=v, process_reward=p) for v, p in zip(values, process, strict=True)]
    return Trajectory("test", "task", turns=turns, outcome=outcome)


def test_over_turns_by_hand() -> None:
    """r = 0.1, 0, 1; V = 0.5, 0.4, 0.8; discount 0.9, λ 0.5."""
    one = episode([[0.5], [0.4], [0.8]], 1.0, [0.1, 0.0, 0.0])
    a2 = 1.0 - 0.8
    a1 = (0.9 * 0.8 - 0.4) + 0.45 * a2
    a0 = (0.1 + 0.9 * 0.4 - 0.5) + 0.45 * a1
    advantages, targets = estimate_turns(one, discount=0.9, process_weight=1.0, gae_lambda=0.5, gae="turn")
    np.testing.assert_allclose(np.concatenate(advantages), [a0, a1, a2], rtol=1e-12)
    np.testing.assert_allclose(np.concatenate(targets), [a0 + 0.5, a1 + 0.4, a2 + 0.8], rtol=1e-12)


def test_over_tokens_by_hand() -> None:
    """Two turns of 2 and 1 tokens; r = 0.3 and 1 at their last tokens; V = 0.5, 0.6 | 0.7; the discount 0.9 applies between the turns only."""
    one = episode([[0.5, 0.6], [0.7]], 1.0, [0.3, 0.0])
    a2 = 1.0 - 0.7
    a1 = (0.3 + 0.9 * 0.7 - 0.6) + 0.9 * 0.5 * a2
    a0 = (0.6 - 0.5) + 0.5 * a1
    advantages, _ = estimate_turns(one, discount=0.9, process_weight=1.0, gae_lambda=0.5, gae="token")
    assert [len(turn) for turn in advantages] == [2, 1]
    np.testing.assert_allclose(np.concatenate(advantages), [a0, a1, a2], rtol=1e-12)
    credit.estimate("ppo", [one], discount=0.9, gae_lambda=0.5, gae="token", normalise=False)
    np.testing.assert_allclose(one.turns[0].token_advantages + one.turns[1].token_advantages, [a0, a1, a2], rtol=1e-12)
    np.testing.assert_allclose(one.turns[0].advantage, (a0 + a1) / 2, rtol=1e-12)


@pytest.mark.parametrize("gae", ["turn", "token"])
def test_limits(gae: str) -> None:
    """λ = 1: the target is the discounted return whatever the critic says. λ = 0: it is r + discount · the next value."""
    random = np.random.default_rng(0)
    one = episode([random.normal(size=n).tolist() for n in (3, 1, 2)], 1.0, [0.2, -0.1, 0.0])
    returns = credit.discounted_returns([0.2, -0.1, 1.0], 0.9)
    _, targets = estimate_turns(one, discount=0.9, process_weight=1.0, gae_lambda=1.0, gae=gae)
    for turn, expected in zip(targets, returns, strict=True):
        np.testing.assert_allclose(turn, expected, rtol=1e-12)
    _, targets = estimate_turns(one, discount=0.9, process_weight=1.0, gae_lambda=0.0, gae=gae)
    np.testing.assert_allclose([turn[-1] for turn in targets], [0.2 + 0.9 * one.turns[1].values[0], -0.1 + 0.9 * one.turns[2].values[0], 1.0])


def test_a_critic_that_knows_leaves_nothing_to_learn() -> None:
    returns = credit.discounted_returns([0.0, 0.0, 1.0], 0.9)
    one = episode([[float(g)] for g in returns], 1.0)
    credit.estimate("ppo", [one], discount=0.9, gae_lambda=0.95, normalise=False)
    np.testing.assert_allclose([turn.advantage for turn in one.turns], 0.0, atol=1e-12)


@pytest.mark.parametrize("gae", ["turn", "token"])
def test_normalised_advantages_have_mean_zero_and_variance_one_as_the_loss_weighs_them(gae: str) -> None:
    random = np.random.default_rng(1)
    batch = [episode([random.normal(size=random.integers(1, 4)).tolist() for _ in range(random.integers(1, 6))], random.random()) for _ in range(9)]
    credit.estimate("ppo", batch, gae=gae)

    def mean(power: int) -> float:
        turns = [[np.mean(np.power(turn.token_advantages or [turn.advantage], power)) for turn in one.turns] for one in batch]
        return float(np.mean([np.mean(each) for each in turns]))

    np.testing.assert_allclose([mean(1), mean(2)], [0.0, 1.0], atol=1e-5)


def test_no_values_no_advantages() -> None:
    with pytest.raises(ValueError, match="let a critic value it first"):
        credit.estimate("ppo", [Trajectory("test", "task", turns=[Turn(tokens=[1])], outcome=1.0)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"credit.estimator": "ppo"}, "ppo needs a value head"),
        ({"critic.trunk": "own"}, "uses no value head"),
        ({"critic.trunk": "two"}, "none, shared, own"),
        ({"credit.gae": "word"}, "turn, token"),
        ({"credit.estimator": "ppo", "critic.trunk": "own", "credit.gae": "token", "credit.permute": True}, "whole turns"),
    ],
)
def test_contradictory_choices_are_one_sentence(changes: dict, words: str) -> None:
    config = get_defaults()
    critic.check(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        critic.check(config)
