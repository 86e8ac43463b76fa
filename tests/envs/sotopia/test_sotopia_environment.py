"""Two seats: splits and ids, the step's contract, scores and progress."""

from __future__ import annotations

import pytest

from envs.sotopia import generator
from envs.sotopia.action import ACTION_TYPES, Action
from envs.sotopia.environment import SotopiaEnvironment
from epo_jax.errors import UserError


@pytest.fixture
def environment(monkeypatch) -> SotopiaEnvironment:
    monkeypatch.delenv("SOTOPIA_DATA", raising=False)
    return SotopiaEnvironment()


@pytest.fixture
def real(sotopia_data) -> SotopiaEnvironment:
    return SotopiaEnvironment(data=sotopia_data)


def test_splits_of_the_real_files(real):
    everything, hard = real.tasks("all"), real.tasks("hard")
    assert len(everything) == 450 and len(hard) == 70 and set(hard) <= set(everything)
    task = hard[3]
    assert task.id == f"sotopia/{task.name}"
    assert real.find_task(task.id) == real.find_task("3", "hard") == real.find_task("hard/3") == real.find_task(task.name, "hard") == task
    assert real.find_task(task.id, "hard") == task == real.find_task(task.id, "all")
    outside = next(task for task in everything if task not in hard)
    with pytest.raises(UserError, match="in hard"):
        real.find_task(outside.id, "hard")
    assert real.default_splits() == ("generated:train", "all")
    with pytest.raises(UserError, match="lists for 'train'"):
        real.tasks("train")


def test_generated_splits(environment):
    assert environment.default_splits() == ("generated:train", "generated:eval")
    assert [len(environment.tasks(split)) for split in generator.SPLITS] == [10_000, 500, len(generator.scenarios())]
    assert len(SotopiaEnvironment(generated={"generated:eval": 3}).tasks("generated:eval")) == 3
    task = environment.tasks("generated:eval")[7]
    assert task.id == "generated:eval/7" and environment.find_task(task.id) == environment.find_task("7", "generated:eval") == task


@pytest.mark.parametrize(
    ("identifier", "split", "words"),
    [
        ("1", "valid", "no split 'valid'"),
        ("1", None, "does not start with a split"),
        ("elsewhere/1", None, "does not start with a split"),
        ("generated:eval/x", None, "is a number"),
        ("generated:eval/007", None, "is a number"),
        ("generated:eval/99999999", None, "numbered below 1000000"),
        ("generated:scenarios/99", None, "numbered below"),
        ("99", "generated:scenarios", "numbered from 0"),
        ("generated:eval/1", "generated:train", "there is no"),
        ("sotopia/x", None, "set SOTOPIA_DATA"),
        ("3", "hard", "set SOTOPIA_DATA"),
    ],
)
def test_tasks_that_are_not_there(environment, identifier, split, words):
    with pytest.raises(UserError, match=words):
        environment.find_task(identifier, split)


def test_no_real_combination_of_that_name(real):
    with pytest.raises(UserError, match="no combination '01H'"):
        real.find_task("sotopia/01H")
    with pytest.raises(UserError, match="70 combinations, numbered from 0"):
        real.find_task("70", "hard")
    with pytest.raises(UserError, match="no game files"):
        real.task_of_file("x.json")


def test_a_game_between_two_seats(environment):
    contexts = environment.reset("generated:eval/0")
    assert environment.turn == 0 and environment.scoring == "exact" and environment.admissible == list(ACTION_TYPES)
    for seat in (0, 1):
        assert contexts[seat] == environment.view(seat).opening() and "Your limit is" in contexts[seat]
    line = 'Turn #0: Yuki Arden said: "I offer price $80."'
    assert environment.step(0, Action("speak", "I offer price $80.")) == ({0: line, 1: line}, False, {"end": None, "deal": None})
    low, high = (int(environment.view(seat).side.price_limit[1:]) for seat in (0, 1))
    assert environment.progress(1) == pytest.approx((high - 80) / (high - low)) and environment.progress(0) == 0
    assert environment.outcome(0) == environment.outcome(1) == 0 and environment.turn == 1
    observations, done, info = environment.step(1, '{"action_type": "speak", "argument": "I accept."}')
    assert done and info == {"end": "agreement", "deal": (21,)} and environment.turn is None and environment.admissible == []
    assert environment.goal(0) == pytest.approx(10 * (80 - low) / (high - low))
    assert environment.outcome(0) + environment.outcome(1) == pytest.approx(1)
    assert [environment.progress(seat) for seat in (0, 1)] == [environment.outcome(seat) for seat in (0, 1)]
    with pytest.raises(ValueError, match="is over"):
        environment.step(0, Action("none"))


def test_what_is_no_action_changes_nothing(environment):
    environment.reset("generated:eval/0")
    for faulty in ("hello", '{"action_type": "fly"}', ""):
        with pytest.raises(ValueError):
            environment.step(0, faulty)
    with pytest.raises(ValueError, match="not seat 1's"):
        environment.step(1, Action("none"))
    assert environment.turn == 0 and environment.view(0).history == ()


def test_progress_falls_to_nothing_without_a_deal(environment):
    environment.reset("generated:eval/0")
    environment.step(0, Action("speak", "I offer price $70."))
    assert environment.progress(1) > 0
    environment.step(1, Action("leave"))
    assert [environment.progress(seat) for seat in (0, 1)] == [0, 0] == [environment.goal(seat) for seat in (0, 1)]


def test_what_needs_an_evaluator_has_no_score(environment, real):
    kinds = {}
    for task in environment.tasks("generated:scenarios"):
        environment.reset(task)
        kinds[environment.scoring] = kinds.get(environment.scoring, 0) + 1
        assert (environment.outcome(0) is None) == (environment.scoring == "evaluator")
    assert kinds == {"exact": 17, "proxy": 5, "evaluator": 7}
    real.reset(real.tasks("hard")[0])
    assert real.scoring == "evaluator" and real.goal(0) is None and real.outcome(1) is None and real.progress(0) == 0


def test_every_real_combination_plays_through_with_scripted_seats(real):
    """One of each scenario; the same actions again give the same conversation."""
    for task in real.tasks("all")[::5]:
        transcripts = []
        for _ in range(2):
            real.reset(task)
            negotiators = [real.negotiator(seat, tempered=True) for seat in (0, 1)]
            while (seat := real.turn) is not None:
                real.step(seat, negotiators[seat].choose(None, real.view(seat)))
            transcripts.append(real.transcript())
        assert transcripts[0] == transcripts[1] and real.conversation.end == "max_turns" and real.task_id == task.id


def test_nothing_before_a_reset(environment):
    with pytest.raises(RuntimeError, match="reset"):
        environment.view(0)
