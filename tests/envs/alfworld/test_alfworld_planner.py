"""The planner wins every game from anywhere, by shortest plans, and progress cannot be farmed."""

from __future__ import annotations

import random

import pytest

from envs.alfworld import planner
from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.generator import generate_game


def assert_won_both_ways(data: dict) -> None:
    """By the game's walkthrough and by the planner, which is never longer."""
    game = Game.from_dict(data)
    engine = AlfworldEngine(game)
    for command in game.walkthrough:
        assert not engine.won and engine.step(command) != "Nothing happens."
    assert engine.won
    engine.reset()
    plan = planner.plan(engine)
    assert plan and len(plan) <= len(game.walkthrough)
    for command in plan:
        assert not engine.won and engine.step(command) != "Nothing happens."
    assert engine.won


def test_wins_all_seen_games(seen_games):
    assert len(seen_games) == 140
    kinds = set()
    for data in seen_games.values():
        assert_won_both_ways(data)
        kinds.add(Game.from_dict(data).goal.task_type)
    assert len(kinds) == 6


@pytest.mark.slow
def test_wins_all_training_games(training_games):
    count = 0
    for _, data in training_games:
        assert_won_both_ways(data)
        count += 1
    assert count == 3553


def random_states(game: Game, rng: random.Random, steps: int):
    """(engine before, command) along a play that tends to change things; the caller lets the step happen."""
    engine = AlfworldEngine(game)
    changing = ("take", "move", "heat", "cool", "clean", "use", "open", "close")
    for _ in range(steps):
        commands = engine.admissible_commands()
        strong = [command for command in commands if command.split()[0] in changing]
        yield engine, rng.choice(strong if strong and rng.random() < 0.5 else commands)
        if engine.won:
            return


def generated_games() -> list[Game]:
    return [Game.from_dict(generate_game(seed, size="full", walkthrough=False)) for seed in range(12)]


def test_no_step_shortens_the_plan_by_more_than_one():
    """True of shortest plans only: a longer plan somewhere would show as a drop of two."""
    rng = random.Random(5)
    checked = 0
    for game in generated_games():
        for engine, command in random_states(game, rng, 60):
            before = planner.distance(engine)
            first = planner.expert_action(engine)
            assert before is not None and first in engine.admissible_commands()
            engine.step(command)
            after = planner.distance(engine)
            assert after >= before - 1, (command, first)
            if command == first:
                assert after == before - 1
            checked += 1
    assert checked > 300


def test_wins_from_any_state_that_random_play_reaches():
    rng = random.Random(9)
    for game in generated_games():
        for engine, command in random_states(game, rng, 25):
            engine.step(command)
        for command in planner.plan(engine):
            engine.step(command)
        assert engine.won


def test_progress_rises_along_a_plan_and_is_one_only_when_won(seen_games):
    for data in list(seen_games.values())[::10]:
        engine = AlfworldEngine(Game.from_dict(data))
        progress = planner.Progress(engine)
        assert progress.best == 0.0
        for command in planner.plan(engine):
            assert progress.best < 1.0
            before = progress.best
            engine.step(command)
            assert progress.update(engine) > before
        assert progress.best == 1.0


def test_taking_and_putting_back_earns_once(seen_games):
    data = next(data for path, data in seen_games.items() if "pick_heat" in path)
    engine = AlfworldEngine(Game.from_dict(data))
    progress = planner.Progress(engine)
    plan = planner.plan(engine)
    take = next(index for index, command in enumerate(plan) if command.startswith("take"))
    for command in plan[: take + 1]:
        engine.step(command)
        progress.update(engine)
    reached = progress.best
    assert reached > 0
    _, thing, receptacle = plan[take].replace("take ", "|").replace(" from ", "|").split("|")
    for _ in range(5):
        engine.step(f"move {thing} to {receptacle}")
        assert progress.value(engine) < reached
        assert progress.update(engine) == reached
        engine.step(f"take {thing} from {receptacle}")
        assert progress.update(engine) == reached


def test_says_so_when_a_held_thing_fits_nowhere(game_data):
    game = Game.from_dict(game_data)
    engine = AlfworldEngine(game)
    stuck = next(name for name, thing in game.things.items() if thing.pickupable and thing.kind != game.goal.target)
    engine.held = stuck
    engine.game.can_contain.clear()
    assert planner.plan(engine) is None and planner.distance(engine) is None
    assert planner.expert_action(engine) == "look"
