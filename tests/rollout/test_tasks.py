"""The mixture of environments: exact shares, every task before any twice, and the same on every machine."""

from __future__ import annotations

import collections

import pytest

import envs
from configs import sotopia
from configs.alfshop import get_config
from epo_jax.rollout.prompts import Prompts
from epo_jax.rollout.tasks import TaskSet, dealt, load, mixed


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.6, 0.4], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [0.999, 0.001]])
def test_every_beginning_has_its_shares(shares):
    counts = collections.Counter()
    for index in range(2_000):
        which, before = mixed(index, shares)
        assert before == counts[which]
        counts[which] += 1
        for number, share in enumerate(shares):
            assert abs(counts[number] - share * (index + 1)) < len(shares)


def test_two_equal_shares_take_turns():
    assert [mixed(index, [0.5, 0.5])[0] for index in range(6)] == [0, 1, 0, 1, 0, 1]


def test_each_task_comes_once_before_any_comes_twice():
    sets = [TaskSet(name, share, "", "", list(tasks), [], Prompts(""), 1) for name, share, tasks in (("a", 0.75, "uvwxyz"), ("b", 0.25, "pq"))]
    dealt_out = [dealt(sets, index, (3, 1)) for index in range(16)]
    of_a = [task for task_set, task in dealt_out if task_set.environment == "a"]
    of_b = [task for task_set, task in dealt_out if task_set.environment == "b"]
    assert sorted(of_a[:6]) == list("uvwxyz") and sorted(of_a[6:12]) == list("uvwxyz")
    assert sorted(of_b[:2]) == sorted(of_b[2:]) == ["p", "q"]
    assert dealt_out == [dealt(sets, index, (3, 1)) for index in range(16)]
    assert dealt_out != [dealt(sets, index, (3, 2)) for index in range(16)]


@pytest.mark.parametrize("preset, households", [("mini", 2 / 3), ("smollm2", 0.5)])
def test_alfshop_mixes_both_environments(preset, households, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    sets = load(get_config(preset))
    assert [task_set.environment for task_set in sets] == ["alfworld", "webshop"]
    assert [task_set.share for task_set in sets] == pytest.approx([households, 1 - households])
    assert all((task_set.train_split, task_set.eval_split) == ("generated:train", "generated:eval") for task_set in sets)


def test_a_share_of_zero_is_not_played():
    config = get_config()
    config.environments.alfworld.share = 0.0
    assert [task_set.environment for task_set in load(config)] == ["webshop"]


def test_an_environment_without_a_share_is_never_made(monkeypatch):
    made, make = [], envs.make
    monkeypatch.setattr(envs, "make", lambda name, **options: made.append(name) or make(name, **options))
    load(get_config())
    assert sorted(set(made)) == ["alfworld", "webshop"]


def test_sotopia_plays_its_own_games_alone_and_keeps_its_best_round():
    config = sotopia.get_config()
    (task_set,) = load(config)
    assert (task_set.environment, task_set.share, task_set.train_split, task_set.eval_split) == ("sotopia", 1.0, "generated:train", "generated:eval")
    assert config.checkpoint.keep_best and not get_config().checkpoint.keep_best
    seat = task_set.make()
    for task in task_set.train[:200]:
        seat.reset(task)
        assert (seat.view().max_turns + 1) // 2 <= task_set.max_turns  # no conversation is cut short


def test_real_data_is_taken_where_its_folder_is_named(monkeypatch, tmp_path):
    for name, variable, splits in (("alfworld", "ALFWORLD_DATA", ("train", "valid_seen")), ("webshop", "WEBSHOP_DATA", ("train", "test"))):
        monkeypatch.delenv(variable, raising=False)
        assert envs.make(name).default_splits() == ("generated:train", "generated:eval")
        monkeypatch.setenv(variable, str(tmp_path))
        assert envs.make(name).default_splits() == splits
