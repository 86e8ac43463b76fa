"""The worked example in the prompt is true: the engine answers each of its lines, and the literal actor reads them so."""

from __future__ import annotations

import pathlib
import random

import envs.alfworld
from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.generator import Household, _fixed_texts, _Item, _problem_text
from epo_jax.rollout.literal import choose

PROMPTS = pathlib.Path(envs.alfworld.__file__).parent / "prompts"


def example_home() -> Game:
    """The kitchen that the example tells of."""
    kinds = ("Cabinet", "Cabinet", "CounterTop", "Drawer", "Fridge", "GarbageCan", "Microwave", "Sink")
    receptacles = []
    for index, kind in enumerate(kinds):
        suffix = "_bar_SinkBasin" if kind == "Sink" else ""
        receptacles.append(_Item(kind + ("Basin" if suffix else ""), f"{kind}_bar__plus_0{index}_dot_00{suffix}"))
    # Numbers count down in the order of names: the second cabinet is cabinet 1.
    cabinet, counter, sink = receptacles[1], receptacles[2], receptacles[7]
    lying = (("Mug", cabinet), ("Plate", cabinet), ("Bread", counter), ("Knife", counter), ("SaltShaker", counter), ("DishSponge", sink))
    objects = [_Item(kind, f"{kind}_bar__plus_00_dot_00", at) for kind, at in lying]
    home = Household("kitchen", receptacles, objects, "pick_clean_then_place_in_recep", "Mug", "Cabinet", "put a clean mug in cabinet.")
    domain, grammar = _fixed_texts()
    return Game.from_dict(
        {
            "pddl_domain": domain,
            "grammar": grammar.replace("UNKNOWN GOAL", home.sentence),
            "pddl_problem": _problem_text(home, random.Random(0), 0),
            "solvable": True,
            "walkthrough": [],
        }
    )


def test_example_is_what_the_engine_says() -> None:
    blocks = (PROMPTS / "example.txt").read_text().split("\n\n")
    engine = AlfworldEngine(example_home())
    assert engine.reset().split("\n\n")[1:] == blocks[1:3]
    turns = [block.split("\n") for block in blocks if block.startswith("Thought: ")]
    assert len(turns) == 8
    for strategy, told, observation in turns:
        action = told.removeprefix("Agent1's ")
        assert choose(strategy, engine.admissible_commands()) == action
        assert not engine.won
        assert engine.step(action) == observation
    assert engine.won


def test_prompts_exist() -> None:
    assert "Thought:" in (PROMPTS / "strategist.txt").read_text()
    assert len((PROMPTS / "brief.txt").read_text().split()) < 30
