"""The worked example in the prompt is true: the engine tells each of its lines, and the strategies do what they say."""

from __future__ import annotations

import json
import pathlib

import envs.sotopia
from envs.sotopia.action import ACTION_TYPES, Action
from envs.sotopia.advice import MAX_WORDS, words_of
from envs.sotopia.agreement import read
from envs.sotopia.bargaining import Game, Issue, Side
from envs.sotopia.engine import Conversation
from envs.sotopia.generator import _private, _rule
from envs.sotopia.negotiator import Negotiator
from envs.sotopia.people import Character, Relationship
from envs.sotopia.scenario import Combination, Scenario
from epo_jax.rollout import prompts

PROMPTS = pathlib.Path(envs.sotopia.__file__).parent / "prompts"


def example_game() -> Combination:
    """The sale that the example tells of."""
    values = [float(price) for price in range(20, 91, 2)]
    issues = (Issue("price", tuple(f"${price:g}" for price in values)),)
    game = Game(issues, (Side(issues, (tuple(values),), 36.0), Side(issues, (tuple(-value for value in values),), -70.0)))
    lena = Character("lena", "Lena", "Fisk", 30, "Photographer", "Woman", "She/her", secret="She has already ordered a new camera.")
    omar = Character("omar", "Omar", "Hale", secret="He has won in a lottery.")
    scenario = Scenario(
        id="camera",
        codename="camera",
        kind="negotiation",
        text="Lena sells a used camera, and Omar would like to have it." + _rule(game, 8).replace("$56", "$50"),
        goals=("Sell the camera at a high price. " + _private(game.sides[0]), "Buy it."),
        relationship=Relationship.STRANGER,
        game=game,
        max_turns=8,
    )
    return Combination("camera", scenario, (lena, omar))


def test_the_example_is_what_the_engine_says():
    blocks = (PROMPTS / "example.txt").read_text().split("\n\n")
    conversation = Conversation(example_game())
    assert blocks[1] == conversation.view(0).opening() + "\nAgent1 is Lena Fisk."
    turns = [block.split("\n") for block in blocks if block.startswith("Strategy: ")]
    assert len(turns) == 4
    for strategy, told, *lines in turns:
        action = Action.parse(told.removeprefix("Agent1's "))
        assert len(strategy.split()) - 1 <= MAX_WORDS and len(words_of(strategy)) <= MAX_WORDS
        before = conversation.view(0)
        conversation.act(0, action)
        if conversation.turn is not None:
            conversation.act(1, Action("speak", lines[1].partition('said: "')[2].removesuffix('"')))
        view = conversation.view(0)
        assert [view.line(number) for number in range(before.turn, view.turn)] == lines
        # The embedded negotiator makes the same of the words as the actor of the example.
        embedded = Negotiator().choose(strategy, before)
        meant = [read(view.side.issues, (*before.history, (0, move))) for move in (action, embedded)]
        assert (meant[0].standing, meant[0].deal) == (meant[1].standing, meant[1].deal)
    assert conversation.end == "agreement" and view.side.issues[0].options[conversation.deal[0]] == "$62"


def test_prompts_exist():
    style = prompts.load("sotopia", "full")
    assert "at most ten words" in style.instruction and style.instruction.endswith('Reply "OK" when you are ready.')
    assert len((PROMPTS / "brief.txt").read_text().split()) < 30 and "Strategy:" in (PROMPTS / "brief.txt").read_text()
    actor = (PROMPTS / "actor.txt").read_text()
    assert all(f'"{kind}"' in actor for kind in ACTION_TYPES) and "Agent1" in actor
    assert Action.parse((PROMPTS / "actor_example.txt").read_text()).action_type == "speak"


def test_the_evaluator_s_dimensions():
    """Names and ranges as published; the answer's form is JSON and holds all seven for both."""
    text = (PROMPTS / "evaluator.txt").read_text()
    ranges = {
        "believability": (0, 10), "relationship": (-5, 5), "knowledge": (0, 10), "secret": (-10, 0), "social_rules": (-10, 0),
        "financial_and_material_benefits": (-5, 5), "goal": (0, 10),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        assert f"- {name} ({low} to {high}):" in text
    form = json.loads(text[text.index('{"agent_1"') :])
    assert list(form) == ["agent_1", "agent_2"] and all(list(answer) == list(ranges) for answer in form.values())
