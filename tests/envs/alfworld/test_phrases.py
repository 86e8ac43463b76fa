"""The explorer's words: short, well-formed, and understood as well as each style promises."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import pytest

from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.explorer import Explorer
from envs.alfworld.generator import generate_game
from envs.alfworld.phrases import Demonstration, demonstrate, phrase
from envs.speaker import MIXED, PRECISE, STYLES, Speaker
from epo_jax.rollout.literal import choose


class Home:
    """The least of an environment: generated small homes by seed."""

    def reset(self, task: int) -> str:
        self.engine = AlfworldEngine(Game.from_dict(generate_game(task, walkthrough=False)))
        return self.engine.reset()

    @property
    def admissible(self) -> list[str]:
        return self.engine.admissible_commands()

    def step(self, action: str) -> tuple[str, float, bool, dict]:
        observation = self.engine.step(action)
        return observation, float(self.engine.won), self.engine.won, {"success": self.engine.won}


def demonstrations(weights: Mapping[str, float], count: int, limit: int, actor=None) -> list[Demonstration]:
    home = Home()
    return [demonstrate(home, seed, random.Random(seed), weights, max_turns=limit, actor=actor) for seed in range(count)]


def success(found: list[Demonstration]) -> float:
    return sum(demonstration.success for demonstration in found) / len(found)


@pytest.mark.parametrize("style", STYLES)
def test_sentences_are_short_and_complete(style: str) -> None:
    said = {step.strategy for found in demonstrations({style: 1.0}, 150, 24, choose) for step in found.steps}
    said |= {step.strategy for found in demonstrations({style: 1.0}, 150, 24) for step in found.steps}
    assert len(said) > (10 if style == "vague" else 30)
    for sentence in said:
        assert re.fullmatch(r"Thought: [a-z0-9 ,]+\.", sentence), sentence
        assert "  " not in sentence and len(sentence.split()) <= 13, sentence


def test_exact_and_plain_words_are_carried_out() -> None:
    rng = random.Random(0)
    for seed in range(100):
        engine = AlfworldEngine(Game.from_dict(generate_game(seed, walkthrough=False)))
        explorer = Explorer()
        explorer.reset(engine.reset())
        while not engine.won:
            action = explorer.act()
            for style in ("exact", "plain"):
                words = phrase(explorer.decision, style, rng)
                assert choose(words, engine.admissible_commands()) == action, words
            explorer.observe(engine.step(action))


def test_the_explorer_acts_whatever_was_said() -> None:
    found = demonstrations({"vague": 1.0}, 40, 40)
    assert success(found) == 1.0
    said = {step.strategy for demonstration in found for step in demonstration.steps}
    assert not any(any(character.isdigit() for character in sentence) for sentence in said)


def test_precise_words_win_and_mixed_words_leave_something_to_learn() -> None:
    assert success(demonstrations(PRECISE, 200, 20, choose)) >= 0.95
    assert success(demonstrations({"loose": 1.0}, 200, 20, choose)) >= 0.8
    assert 0.8 <= success(demonstrations(MIXED, 200, 20, choose)) <= 0.96  # spoken without a clone's mistakes
    assert success(demonstrations({"vague": 1.0}, 100, 20, choose)) <= 0.05


def test_styles_are_drawn_by_weight_and_seed() -> None:
    explorer = Explorer()
    explorer.reset(Home().reset(3))
    explorer.act()
    decision = explorer.decision

    def words(seed: int, weights: Mapping[str, float]) -> list[str]:
        speaker = Speaker(phrase, random.Random(seed), weights)
        return [speaker.say(decision) for _ in range(400)]

    assert words(1, MIXED) == words(1, MIXED)
    exact = f"Thought: {decision.action}."
    assert words(1, {"exact": 1.0}) == [exact] * 400
    share = words(2, {"exact": 3.0, "vague": 1.0}).count(exact) / 400
    assert 0.65 < share < 0.85
