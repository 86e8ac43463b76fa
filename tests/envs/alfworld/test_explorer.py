"""The explorer wins from text alone: generated homes, real games, and when somebody else meddles."""

from __future__ import annotations

import json
import pathlib
import random
import tarfile

import pytest

from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.explorer import Explorer, Task, read_task
from envs.alfworld.generator import generate_game


def play(game: Game, *, limit: int, meddle: float = 0.0, seed: int = 0) -> int:
    """Steps to the win, 0 if there is none. With probability `meddle` some other admissible command is carried out."""
    engine = AlfworldEngine(game)
    explorer = Explorer()
    explorer.reset(engine.reset())
    rng = random.Random(seed)
    for step in range(limit):
        action = explorer.act()
        if rng.random() < meddle:
            action = rng.choice(engine.admissible_commands())
        explorer.observe(engine.step(action), action)
        if engine.won:
            return step + 1
    return 0


@pytest.mark.parametrize(
    ("sentence", "task"),
    [
        ("put a mug in coffeemachine.", Task("place", "mug", "coffeemachine")),
        ("put some spraybottle on toilet.", Task("place", "spraybottle", "toilet")),
        ("put two cd in drawer.", Task("two", "cd", "drawer")),
        ("find two candle and put them in cabinet.", Task("two", "candle", "cabinet")),
        ("put a clean soapbar in cabinet.", Task("clean", "soapbar", "cabinet")),
        ("clean some kettle and put it in cabinet.", Task("clean", "kettle", "cabinet")),
        ("put a hot tomato in fridge.", Task("heat", "tomato", "fridge")),
        ("heat some cup and put it in cabinet.", Task("heat", "cup", "cabinet")),
        ("put a cool pan in stoveburner.", Task("cool", "pan", "stoveburner")),
        ("cool some apple and put it in microwave.", Task("cool", "apple", "microwave")),
        ("look at pillow under the desklamp.", Task("look", "pillow", "desklamp")),
        ("examine the alarmclock with the desklamp.", Task("look", "alarmclock", "desklamp")),
    ],
)
def test_reads_every_task(sentence: str, task: Task) -> None:
    assert read_task(f"a room with a mug 1\n\nYour task is to: {sentence}") == task
    assert read_task(sentence) == task


def test_strange_tasks_do_not_break_it() -> None:
    assert read_task("Your task is to: dance.") is None
    explorer = Explorer()
    explorer.reset("nothing here")
    for _ in range(3):
        assert explorer.act() == "look"
        explorer.observe("You see \x00 nothing 1 2 3 in, you see .")


def test_wins_generated_games() -> None:
    small = [play(Game.from_dict(generate_game(seed, walkthrough=False)), limit=40) for seed in range(300)]
    assert sum(map(bool, small)) >= 298
    assert 6 <= sum(small) / 300 <= 14
    full = [play(Game.from_dict(generate_game(seed, size="full", walkthrough=False)), limit=40) for seed in range(100)]
    assert sum(map(bool, full)) >= 97


def test_recovers_from_what_others_do() -> None:
    """A third of the moves are somebody else's whims; opened, taken, misplaced: it sees that in the feedback and goes on."""
    steps = [
        play(Game.from_dict(generate_game(seed, walkthrough=False)), limit=80, meddle=0.33, seed=seed) for seed in range(150)
    ]
    assert sum(map(bool, steps)) >= 147


def test_same_action_until_something_is_observed() -> None:
    explorer = Explorer()
    explorer.reset(AlfworldEngine(Game.from_dict(generate_game(3))).reset())
    assert explorer.act() == explorer.act()


def test_puts_back_what_is_not_wanted() -> None:
    explorer = Explorer()
    explorer.reset("You are in the middle of a room. You see a desk 1, and a bed 1.\n\nYour task is to: put a book in bed.")
    assert explorer.act() == "go to desk 1"
    explorer.observe("You arrive at desk 1. On the desk 1, you see a book 2, a book 1, and a pen 1.")
    assert explorer.act() == "take book 1 from desk 1"
    explorer.observe("You pick up the pen 1 from the desk 1.")  # somebody was not listening
    assert explorer.act() == "move pen 1 to desk 1" and explorer.decision.purpose == "drop"
    explorer.observe("You move the pen 1 to the desk 1.")
    assert explorer.act() == "take book 1 from desk 1"
    explorer.observe("You pick up the book 1 from the desk 1.")
    assert explorer.act() == "go to bed 1" and explorer.decision.purpose == "carry"


def real_games(shared: pathlib.Path, split: str, every: int) -> list[Game]:
    archive = shared / "data" / "alfworld" / f"{split}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.endswith("game.tw-pddl")][::every]
        return [Game.from_dict(json.load(tar.extractfile(member))) for member in members]


def test_wins_real_games(shared: pathlib.Path) -> None:
    steps = [play(game, limit=40) for game in real_games(shared, "valid_seen", 1)]
    assert len(steps) == 140
    assert sum(map(bool, steps)) >= 0.97 * len(steps)


@pytest.mark.slow
def test_wins_real_training_games(shared: pathlib.Path) -> None:
    steps = [play(game, limit=40) for game in real_games(shared, "train", 1)]
    assert len(steps) == 3553
    assert sum(map(bool, steps)) >= 0.95 * len(steps)
