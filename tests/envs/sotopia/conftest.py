"""SOTOPIA's own files, and how a seat that is advised plays against a tempered partner."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest

from envs.sotopia import generator
from envs.sotopia.engine import Conversation
from envs.sotopia.loader import combinations
from envs.sotopia.negotiator import Negotiator
from envs.sotopia.scenario import Combination, View


@pytest.fixture(scope="session")
def sotopia_data(request: pytest.FixtureRequest) -> pathlib.Path:
    """The folder of SOTOPIA's files: SOTOPIA_DATA, else among the reference data."""
    if os.environ.get("SOTOPIA_DATA"):
        return pathlib.Path(os.environ["SOTOPIA_DATA"])
    return request.getfixturevalue("shared") / "data" / "sotopia"


@pytest.fixture(scope="session")
def real_combinations(sotopia_data: pathlib.Path) -> tuple[Combination, ...]:
    return combinations(sotopia_data, "all")


@pytest.fixture(scope="session")
def games() -> list[tuple[Combination, int]]:
    """102 games of every bargaining scenario, with the seat that is advised: 51 times each."""
    return [(generator.generate(generator.TRAIN, number), number // 17 % 2) for number in range(102)]


@pytest.fixture(scope="session")
def play() -> Callable[..., Conversation]:
    """play(combination, seat, advise): the conversation of a plain negotiator that `advise(view)` advises, with a tempered partner."""

    def play(combination: Combination, seat: int, advise: Callable[[View], str | None]) -> Conversation:
        conversation = Conversation(combination)
        own, partner = Negotiator(), Negotiator(combination.tempers[1 - seat], combination.seed)
        while conversation.turn is not None:
            view = conversation.view(conversation.turn)
            action = own.choose(advise(view), view) if view.seat == seat else partner.choose(None, view)
            conversation.act(view.seat, action)
        return conversation

    return play
