"""Splits, ids, episodes: what rollouts see of ALFWorld."""

from __future__ import annotations

import json

import pytest

import envs
from envs.alfworld.generator import generate_game
from epo_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The layout of alfworld-download: three games to play and three to leave out."""
    root = tmp_path_factory.mktemp("alfworld")
    split = root / "json_2.1.1" / "valid_seen"
    for index, name in enumerate(
        [
            "pick_and_place_simple-Mug-None-Desk-3/trial_b",
            "pick_and_place_simple-Mug-None-Desk-3/trial_a",
            "look_at_obj_in_light-Book-None-DeskLamp-1/trial_c",
            "pick_and_place_with_movable_recep-Book-Bowl-Desk-1/trial_d",
            "pick_heat_then_place_in_recep-AppleSliced-None-Desk-1/trial_e",
            "pick_and_place_simple-Pen-None-Desk-3/trial_unsolvable",
        ]
    ):
        path = split / name / "game.tw-pddl"
        path.parent.mkdir(parents=True)
        data = generate_game(index, size="small") | {"solvable": "unsolvable" not in name}
        path.write_text(json.dumps(data), encoding="utf-8")
        (path.parent / "traj_data.json").write_text("{}", encoding="utf-8")
    return root


def test_real_tasks_in_a_fixed_order_without_what_the_original_leaves_out(folder, monkeypatch):
    expected = [
        "valid_seen/look_at_obj_in_light-Book-None-DeskLamp-1/trial_c",
        "valid_seen/pick_and_place_simple-Mug-None-Desk-3/trial_a",
        "valid_seen/pick_and_place_simple-Mug-None-Desk-3/trial_b",
    ]
    assert [task.id for task in envs.make("alfworld", data=folder).tasks("valid_seen")] == expected
    monkeypatch.setenv("ALFWORLD_DATA", str(folder / "json_2.1.1"))  # the inner folder will do
    tasks = envs.make("alfworld").tasks("valid_seen")
    assert [task.id for task in tasks] == expected
    assert tasks[0].task_type == "look_at_obj_in_light"


def test_ids_find_their_tasks_again(folder):
    environment = envs.make("alfworld", data=folder)
    for split in ("valid_seen", "generated:train", "generated:eval"):
        for task in environment.tasks(split)[:3]:
            assert environment.find_task(task.id) == task
            assert environment.find_task(task.id.partition("/")[2], split) == task
    assert environment.find_task("1", "valid_seen") == environment.tasks("valid_seen")[1]


def test_generated_splits_share_no_household():
    environment = envs.make("alfworld", generated={"generated:train": 50, "generated:eval": 20})
    train, evaluation = environment.tasks("generated:train"), environment.tasks("generated:eval")
    assert (len(train), len(evaluation)) == (50, 20)
    assert not {task.seed for task in train} & {task.seed for task in evaluation}


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda e: e.tasks("test"), "use one of train, valid_seen, valid_unseen, generated:train, generated:eval"),
        (lambda e: e.tasks("valid_unseen"), "ALFWORLD_DATA"),
        (lambda e: e.find_task("nowhere/1"), "does not start with a split"),
        (lambda e: e.find_task("valid_seen/../../secret"), "no game"),
        (lambda e: e.find_task("valid_seen/"), "no game"),
        (lambda e: e.find_task("99", "valid_seen"), "3 games"),
        (lambda e: e.find_task("generated:train/many"), "number"),
        (lambda e: e.find_task("generated:train/999999999999"), "number"),
        (lambda e: envs.make("zork"), "use one of alfworld"),
    ],
)
def test_what_is_not_there_is_told(folder, ask, words):
    with pytest.raises(UserError, match=words):
        ask(envs.make("alfworld", data=folder))


def test_no_data_at_all_is_told(monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(UserError, match="alfworld-download"):
        envs.make("alfworld").tasks("train")


def test_an_episode_by_the_expert():
    environment = envs.make("alfworld")
    observation = environment.reset("generated:eval/4")
    assert observation.startswith("You are in the middle of a room.") and "Your task is to: " in observation
    assert environment.progress() == 0.0
    rewards, done = [], False
    while not done:
        action = environment.expert_action()
        assert action in environment.admissible
        observation, reward, done, info = environment.step(action)
        rewards.append(reward)
        assert info["success"] == done
        assert info["admissible"] == environment.admissible
        assert (environment.progress() == 1.0) == done
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert environment.step("look") == ("The game is over: no action changes it any more.", 0.0, True, {"success": True, "admissible": []})


def test_the_same_task_gives_the_same_episode():
    plays = []
    for _ in range(2):
        environment = envs.make("alfworld")
        play = [environment.reset("generated:train/7")]
        for turn in range(20):
            play.append(environment.step(environment.admissible[turn * 7 % len(environment.admissible)])[0])
        plays.append(play)
    assert plays[0] == plays[1]


def test_the_banner_stays_when_asked_for():
    plain = envs.make("alfworld").reset("generated:train/1")
    assert envs.make("alfworld", banner=True).reset("generated:train/1") == "-= Welcome to TextWorld, ALFRED! =-\n\n" + plain
