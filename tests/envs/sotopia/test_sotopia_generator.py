"""The embedded set: how much of it there is, that it is reproducible, and that games differ."""

from __future__ import annotations

import collections

import pytest

from envs.sotopia import generator
from envs.sotopia.action import Action
from envs.sotopia.bargains import BARGAINS
from envs.sotopia.cast import CHARACTERS, TEMPERS
from envs.sotopia.conversations import CONVERSATIONS
from envs.sotopia.generator import EVALUATION, TRAIN, generate
from envs.sotopia.negotiator import PRIDE
from envs.sotopia.topics import KEEP, LEARN, said


def drawn(combination) -> tuple:
    game = combination.scenario.game
    return (combination.scenario.codename, combination.scenario.max_turns, *((side.points, side.reserve) for side in game.sides))


def test_how_much_there_is():
    kinds = {"negotiation", "exchange", "persuasion", "accommodation", "collaboration", "competition"}
    everything = generator.scenarios()
    assert len(everything) >= 24 and len(CHARACTERS) >= 12 and len(BARGAINS) * 3 >= len(everything)
    assert {combination.scenario.kind for combination in everything} == kinds == {bargain.kind for bargain in BARGAINS}
    assert len({scenario.codename for scenario in (*BARGAINS, *CONVERSATIONS)}) == len(everything)
    assert [combination.id for combination in everything] == [f"generated:scenarios/{number}" for number in range(len(everything))]
    assert all(who.secret and who.public_info and who.personality for who in CHARACTERS) and len({who.name for who in CHARACTERS}) == len(CHARACTERS)
    assert set(TEMPERS.values()) == set(PRIDE) - {"plain"}
    for combination in everything:
        assert combination.scenario.text and all(combination.scenario.goals) and "{" not in combination.full_text()


def test_games_are_reproducible_and_distinct():
    training, evaluation = ([generate(split, number) for number in range(340)] for split in (TRAIN, EVALUATION))
    generate.cache_clear()
    assert [generate(TRAIN, number) for number in range(0, 340, 20)] == training[::20]
    known, held_out = set(map(drawn, training)), set(map(drawn, evaluation))
    assert not known & held_out
    assert len(known) > 330 and len(held_out) > 330
    assert collections.Counter(combination.scenario.codename for combination in training) == {bargain.codename: 20 for bargain in BARGAINS}


def test_a_game_known_to_the_byte():
    """Seeds must give the same games on every machine and in every version."""
    game = generate(TRAIN, 0)
    assert (game.names, game.tempers, game.scenario.max_turns) == (("Mira Okafor", "Hanne Brook"), ("steady", "impatient"), 14)
    assert [side.price_limit for side in game.scenario.game.sides] == ["$48", "$72"]
    assert (game.scenario.game.issues[0].options[0], game.scenario.game.issues[0].options[-1]) == ("$24", "$98")


def test_every_game_has_something_in_it_for_both():
    for split in (TRAIN, EVALUATION):
        for number in range(170):
            game = generate(split, number).scenario.game
            second = {deal: share for share, deal in game.sides[1].ranked}
            assert max(min(share, second.get(deal, 0)) for share, deal in game.sides[0].ranked) > 0.1
            assert all(len(issue.options) == len(set(issue.options)) for issue in game.issues)


def test_goals_tell_a_seat_its_own_points():
    for number in range(34):
        combination = generate(EVALUATION, number)
        for seat, side in enumerate(combination.scenario.game.sides):
            goal = combination.view_of(seat).goal
            if side.price_limit:
                assert f"Your limit is {side.price_limit}:" in goal
                continue
            assert f"as {side.reserve:g} points" in goal
            for issue, row in zip(side.issues, side.points, strict=True):
                assert ", ".join(f"{option} {points:g}" for option, points in zip(issue.options, row, strict=True)) in goal


@pytest.mark.parametrize("scenario", [scenario for scenario in CONVERSATIONS if scenario.topics], ids=lambda scenario: scenario.codename)
def test_topics_fit_together(scenario):
    """What one wishes to learn, the other can tell, by asking for it under its name; and what one keeps, it could betray."""
    for seat, side in enumerate(scenario.topics.sides):
        for wish in side.wishes:
            tellers = scenario.topics.sides[1 - seat if wish.kind == LEARN else seat].topics
            topic = next(topic for topic in tellers if topic.name == wish.topic)
            assert said(wish.words, 0, [(0, Action("speak", topic.tells))])
            assert topic.guarded or wish.kind != KEEP


@pytest.mark.parametrize(("split", "number"), [(TRAIN, -1), (TRAIN, generator.MAX_NUMBER), ("all", 0)])
def test_no_such_game(split, number):
    with pytest.raises(ValueError):
        generate(split, number)
