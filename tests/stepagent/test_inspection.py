"""Inspection: sampled at each of the expert's states as if each were a conversation of its own, and the expert's own words follow."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.stepagent import branches, inspection
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
SAMPLING = Sampling(max_new_tokens=5)


class Words:
    """In place of a conversation format."""

    def text(self, tokens) -> str:
        return " ".join(map(str, tokens))


@pytest.fixture(scope="module")
def engine():
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32), declare(CONFIG))
    with Engine(CONFIG, params, stop_ids={0}, pad_id=1, slots=4, max_length=48, decode_chunk=4) as made:
        yield made


def experts() -> list[Trajectory]:
    random, found = np.random.default_rng(0), []
    for index in range(3):
        turns = [Turn(prompt_tokens=random.integers(2, 64, 5).tolist(), tokens=random.integers(2, 64, 3).tolist()) for _ in range(3 + index)]
        for turn in turns:
            turn.strategy = " ".join(map(str, turn.tokens))
        found.append(Trajectory("test", str(index), turns=turns, seed=index))
    return found


def test_each_action_is_what_a_session_of_its_own_would_sample(engine) -> None:
    trajectories = experts()
    asyncio.run(inspection.inspect(engine, Words(), trajectories, SAMPLING, at_once=2))
    assert inspection.exchange_inspected(trajectories)
    for trajectory in trajectories:
        state: list[int] = []
        for turn, found in zip(trajectory.turns, trajectory.extra["inspected"], strict=True):
            state += turn.prompt_tokens
            (alone,) = engine.generate_batch([state], SAMPLING, [trajectory.seed])
            assert found["tokens"] == alone.tokens
            np.testing.assert_allclose(found["logprobs"], alone.logprobs, atol=1e-5)
            state += turn.tokens


def test_what_does_not_fit_is_cut_by_whole_turns(engine) -> None:
    trajectories = experts()
    asyncio.run(inspection.inspect(engine, Words(), trajectories, SAMPLING, at_once=4))
    for length in (5, 24, 99):
        for trajectory in trajectories:
            sizes = np.cumsum([9 + len(found["tokens"]) for found in trajectory.extra["inspected"]])  # 5 read, 3 said, the state's last again
            cut = inspection.inspected([trajectory], length)
            assert [len(one.turns) for one in cut] == [count for count in [int((sizes <= length).sum())] if count]
            assert all(len(branches.of(one).tokens) == sizes[len(one.turns) - 1] for one in cut)
    assert len(trajectories[2].turns) == 5  # the given ones stay whole


def test_saying_the_same_in_other_white_space_is_agreement(engine) -> None:
    (trajectory, *_) = experts()
    asyncio.run(inspection.inspect(engine, Words(), [trajectory], SAMPLING, at_once=4))
    trajectory.extra["inspected"][1]["text"] = f"  {trajectory.turns[1].strategy} "
    assert inspection.differing(trajectory).tolist() == [True, False, True]


def test_a_full_context_ends_a_trajectory_early_and_a_stop_leaves_none_half_done(engine) -> None:
    (long,) = [Trajectory("test", "long", turns=[Turn(prompt_tokens=[5] * 20, tokens=[6] * 5) for _ in range(3)])]
    asyncio.run(inspection.inspect(engine, Words(), [long], SAMPLING, at_once=1))
    assert len(long.extra["inspected"]) == 2
    fresh = experts()
    asyncio.run(inspection.inspect(engine, Words(), fresh, SAMPLING, at_once=1, should_stop=lambda: True))
    assert not inspection.exchange_inspected(fresh)
    assert all("inspected" not in trajectory.extra for trajectory in fresh)


def test_going_back_further_than_there_are_tokens_is_refused(engine) -> None:
    session = engine.open(0)
    with pytest.raises(UserError, match="cannot go back"):
        engine.rewind(session, 1)
    engine.close(session)
