"""One seat against a scripted partner, as the training loop and the tools see it."""

from __future__ import annotations

import statistics

import pytest

import envs
from envs.sotopia import generator
from envs.sotopia.environment import CONVERSATION_OVER
from envs.sotopia.seat import SotopiaSeat
from epo_jax.errors import UserError
from epo_jax.rollout import literal, prompts


@pytest.fixture
def seat(monkeypatch) -> SotopiaSeat:
    monkeypatch.delenv("SOTOPIA_DATA", raising=False)
    return envs.make("sotopia")


def test_tasks_are_seats(seat):
    tasks = seat.tasks("generated:eval")
    assert [task.id for task in tasks[:3]] == ["generated:eval/0/0", "generated:eval/0/1", "generated:eval/1/0"] and len(tasks) == 1000
    assert [task.id for task in SotopiaSeat(seat=1).tasks("generated:eval")[:2]] == ["generated:eval/0/1", "generated:eval/1/1"]
    assert seat.default_splits() == ("generated:train", "generated:eval")
    for identifier, split in (("generated:eval/0/1", None), ("0/1", "generated:eval"), ("generated:eval/0/1", "generated:eval")):
        assert seat.find_task(identifier, split) == tasks[1]
    for identifier, split in (("generated:eval/1", None), ("1", "generated:eval"), ("generated:eval/1", "generated:eval")):
        assert seat.find_task(identifier, split) == tasks[2]
    for options, words in (({"seat": 2}, "no seat 2"), ({"text": "long"}, "no text 'long'")):
        with pytest.raises(UserError, match=words):
            SotopiaSeat(**options)


def test_real_combinations_have_two_seats(sotopia_data):
    seat = SotopiaSeat(data=sotopia_data)
    assert len(seat.tasks("all")) == 900 and len(seat.tasks("hard")) == 140
    task = seat.tasks("hard")[7]
    assert seat.find_task(task.id) == seat.find_task("3/1", "hard") == task
    observation = seat.reset(task)
    assert "Turn #0: " in observation and f"Agent1 is {seat.view().name}." in observation and seat.outcome is None
    seat.step('{"action_type": "leave", "argument": ""}')
    assert seat.done and seat.outcome is None and not seat.success


def test_a_game_in_words_and_in_json(seat):
    first = seat.reset("generated:eval/0/0")
    assert "You are Yuki. Sell the bicycle at a high price: price $38 to $102, limit $62. 6 moves." in first
    assert seat.admissible == [envs.ANYTHING] and seat.progress() == 0 and seat.task_id == "generated:eval/0/0"
    observation, reward, done, info = seat.step("Strategy: hold at 90")
    assert observation.splitlines()[0] == "You: I offer price $90." and observation.splitlines()[1].startswith("Idris: I offer price $")
    assert (reward, done, info) == (0.0, False, {"success": False, "admissible": [envs.ANYTHING], "end": None})
    observation, _, _, _ = seat.step('{"action_type": "action", "argument": "rings the bell"}')
    assert observation.splitlines()[0] == "You [action] rings the bell"


def test_an_agreement_s_reward(seat):
    """An eager buyer ends up above the seller's limit; the reward is what was on offer."""
    number = next(number for number in range(0, 1700, 17) if generator.generate(generator.EVALUATION, number).tempers[1] == "eager")
    seat.reset(f"generated:eval/{number}/0")
    while not seat.done:
        offered, before = seat.progress(), seat.environment.conversation.ledger.standing[1]
        observation, reward, done, info = seat.step("accept their offer" if seat.view().max_turns - seat.view().turn <= 2 else "aim high")
    assert observation == "You: I accept." and done and info["end"] == "agreement" and seat.environment.conversation.deal == before
    assert reward == seat.outcome == seat.progress() == offered > 0
    assert seat.success == info["success"] == (seat.outcome >= 0.5)
    assert seat.step("hold") == (CONVERSATION_OVER, 0.0, True, {"success": seat.success, "admissible": [], "end": "agreement"})
    assert seat.expert_action() == "look"


def test_an_answer_that_is_no_action_is_none_and_is_told(seat):
    seat.reset("generated:eval/0/0")
    observation, _, _, info = seat.step('{"action_type": "shout", "argument": "x"}')
    assert observation.splitlines()[:2] == [info["fault"], "You did nothing"] and "action_type is 'shout'" in info["fault"]


@pytest.mark.parametrize(
    "action", ["", "x" * 1_000_000, "{" * 100_000, "\x00\ud800", '{"action_type": "speak", "argument": "I accept. I accept. goal 10"}']
)
def test_any_action_is_taken(seat, action):
    for identifier in ("generated:eval/0/0", "generated:eval/5/1", "generated:scenarios/20/0", "generated:scenarios/28/1"):
        seat.reset(identifier)
        observation, reward, done, _ = seat.step(action)
        assert len(observation) < 6_000 and reward == 0 and not done


def test_full_text_tells_the_score(seat):
    full = SotopiaSeat(text="full")
    assert full.reset("generated:eval/0/0") == full.view().opening() + "\nAgent1 is Yuki Arden."
    observation, _, done, _ = full.step('{"action_type": "leave"}')
    assert done and observation.splitlines()[-1] == "The conversation is over. Your goal score: 0.0 of 10."


def test_the_literal_actor_passes_the_words_on():
    assert literal.choose("Strategy: hold at 45,\n  and wait", [envs.ANYTHING]) == "hold at 45, and wait"
    assert literal.choose("", [envs.ANYTHING]) == ""


def test_demonstrations_are_reproducible_and_worth_cloning(seat):
    """Mixed wordings through the literal actor: better than words that say nothing, and with room above."""
    shown, vague = [], []
    for number in range(34):
        identifier = f"generated:train/{number}/{number % 2}"
        seat.reset(identifier)
        turns = seat.demonstration(number, max_turns=10, actor=literal.choose)
        shown.append(seat.outcome)
        assert 1 <= len(turns) <= 7 and all(strategy == f"Strategy: {action}" for strategy, action, _ in turns)
        if number < 5:
            seat.reset(identifier)
            assert seat.demonstration(number, max_turns=10, actor=literal.choose) == turns
            assert len(seat.demonstration(number, max_turns=2, actor=literal.choose)) == 2
        seat.reset(identifier)
        while not seat.done:
            seat.step("do what seems right")
        vague.append(seat.outcome)
    assert statistics.fmean(shown) > statistics.fmean(vague) + 0.1
    seat.reset("generated:train/0/0")
    while not seat.done:
        seat.step(seat.expert_action())
    assert seat.success


def test_progress_is_what_could_be_had_now(seat):
    """Rises of progress add up to the outcome, as the embedded judge needs."""
    for number in range(20):
        seat.reset(f"generated:train/{number}/{number % 2}")
        while not seat.done:
            assert 0 <= seat.progress() <= 1
            seat.step("concede slowly" if seat.view().max_turns - seat.view().turn > 2 else "accept")
        assert seat.progress() == seat.outcome


def test_episodes_fit_a_small_model(seat):
    """A whole game in brief is a few hundred words."""
    style = prompts.load("sotopia", "brief")
    for number in range(34):
        texts = [message["content"] for message in style.opening(seat.reset(f"generated:train/{number}/{number % 2}"))]
        for strategy, action, observation in seat.demonstration(0, max_turns=10, actor=literal.choose):
            texts += [strategy, style.after(action, observation)]
        assert len(" ".join(texts).split()) < 450


def test_nothing_before_a_reset():
    with pytest.raises(RuntimeError, match="reset"):
        SotopiaSeat().view()
