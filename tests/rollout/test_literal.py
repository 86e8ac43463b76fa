"""The literal actor against hand-made cases of its rule."""

from __future__ import annotations

import random
import time

import pytest

from epo_jax.rollout.literal import choose

# Standing at desk 1 with empty hands.
AT_DESK = [
    "examine desk 1",
    "go to cabinet 1",
    "go to cabinet 2",
    "go to cabinet 12",
    "go to drawer 1",
    "go to fridge 1",
    "go to sidetable 1",
    "help",
    "inventory",
    "look",
    "take mug 1 from desk 1",
    "take mug 2 from desk 1",
    "take pen 1 from desk 1",
    "use desklamp 1",
]
# Standing at desk 1 with mug 1 in hand.
HOLDING = [
    "examine desk 1",
    "examine mug 1",
    "go to cabinet 1",
    "go to cabinet 2",
    "go to microwave 1",
    "help",
    "inventory",
    "look",
    "move mug 1 to desk 1",
]
# Standing at the closed microwave with mug 1 in hand.
AT_MICROWAVE = [
    "examine microwave 1",
    "examine mug 1",
    "go to cabinet 1",
    "go to fridge 1",
    "heat mug 1 with microwave 1",
    "help",
    "inventory",
    "look",
    "open microwave 1",
]


@pytest.mark.parametrize(
    ("strategy", "action"),
    [
        # the command itself, however it is written
        ("Thought: go to cabinet 2.", "go to cabinet 2"),
        ("THOUGHT:  Go to Cabinet 12!!", "go to cabinet 12"),
        ("go to cabinet 1", "go to cabinet 1"),
        ("First we take pen 1 from desk 1, later more.", "take pen 1 from desk 1"),
        # other verbs
        ("Thought: check cabinet 2 for the mug next.", "go to cabinet 2"),
        ("walk over to the fridge", "go to fridge 1"),
        ("Visit the side table.", "go to sidetable 1"),
        ("head to drawer 1", "go to drawer 1"),
        ("grab mug 2", "take mug 2 from desk 1"),
        ("pick up the pen", "take pen 1 from desk 1"),
        ("switch on the lamp", "use desklamp 1"),
        ("toggle desklamp 1", "use desklamp 1"),
        ("inventory, please", "inventory"),
        # numbers must be right, where there are any
        ("go to cabinet 3", "look"),
        ("grab mug 3", "look"),
        # without a number: the lowest one
        ("look in one of the cabinets for a plate", "go to cabinet 1"),
        ("grab a mug", "take mug 1 from desk 1"),
        # a place alone
        ("cabinet 12", "go to cabinet 12"),
        ("open drawer 1", "go to drawer 1"),
        # nothing that names a command
        ("keep searching", "look"),
        ("we should warm it up", "look"),
        ("take what we need", "look"),  # three things could be taken
        ("look around", "look"),
        ("Thought:", "look"),
        ("", "look"),
        ("это не английский текст", "look"),
    ],
)
def test_at_desk(strategy: str, action: str) -> None:
    assert choose(strategy, AT_DESK) == action


@pytest.mark.parametrize(
    ("strategy", "action"),
    [
        ("put mug 1 in cabinet 2", "go to cabinet 2"),  # not on the desk: another place is named
        ("carry mug 1 to cabinet 2", "go to cabinet 2"),
        ("bring the mug to the microwave", "go to microwave 1"),
        ("put the mug on the desk", "move mug 1 to desk 1"),
        ("place mug 1 here", "move mug 1 to desk 1"),
        ("drop it", "move mug 1 to desk 1"),  # the one thing that can be put down
        ("look at the mug", "examine mug 1"),
        ("warm mug 1 in microwave 1", "go to microwave 1"),
        ("put mug 1 in cabinet 7", "examine mug 1"),  # no such cabinet: the mug is all that is named
    ],
)
def test_with_a_mug_in_hand(strategy: str, action: str) -> None:
    assert choose(strategy, HOLDING) == action


@pytest.mark.parametrize(
    ("strategy", "action"),
    [
        ("warm it up", "heat mug 1 with microwave 1"),
        ("cook mug 1 with the microwave", "heat mug 1 with microwave 1"),
        ("open it", "open microwave 1"),
        ("check microwave 1", "open microwave 1"),
        ("chill the mug in the fridge", "look"),  # neither here nor told to go
        ("go to the fridge", "go to fridge 1"),
    ],
)
def test_at_the_microwave(strategy: str, action: str) -> None:
    assert choose(strategy, AT_MICROWAVE) == action


def test_first_named_verb_breaks_ties() -> None:
    both = ["clean cup 1 with sinkbasin 1", "move cup 1 to sinkbasin 1", "look"]
    assert choose("clean cup 1, then put it down", both) == both[0]
    assert choose("put cup 1 down, then clean it", both) == both[1]


def test_spellings_of_older_games() -> None:
    assert choose("turn on the lamp", ["toggle desklamp 1 sidetable 1", "look"]) == "toggle desklamp 1 sidetable 1"
    assert choose("drop the mug on the desk", ["put mug 1 in/on desk 1", "look"]) == "put mug 1 in/on desk 1"


def test_order_of_commands_does_not_matter() -> None:
    rng = random.Random(0)
    for strategy in ("grab a mug", "search the cabinets", "go to cabinet 2 or cabinet 1", "desk mug pen lamp 1 fridge"):
        answers = set()
        for _ in range(20):
            shuffled = rng.sample(AT_DESK, len(AT_DESK))
            answers.add(choose(strategy, shuffled))
        assert len(answers) == 1, strategy


def test_without_look_or_commands() -> None:
    assert choose("hm", []) == "look"
    assert choose("hm", ["speak", "leave"]) == "speak"


@pytest.mark.parametrize(
    "hostile",
    [
        "a cabinet " * 200_000,
        "9" * 1_000_000,
        "cabinet " + "9" * 1_000_000,
        "\x00\x1b[2J\u202e\ud800" * 300_000,
        "go to " * 300_000,
        "{}%s\\1" * 200_000,
        "İıſK" * 100_000,
    ],
)
def test_hostile_text(hostile: str) -> None:
    start = time.process_time()
    assert choose(hostile, AT_DESK) in AT_DESK
    assert choose("go to cabinet 1", [hostile, "look"]) in (hostile, "look")
    assert time.process_time() - start < 0.5


def test_fast_enough_for_play() -> None:
    choose("warm", AT_DESK)
    start = time.process_time()
    for number in range(500):
        choose(f"Thought: check cabinet {number} for the mug next.", AT_DESK)
    assert (time.process_time() - start) / 500 < 0.001
