"""The environment: splits and ids, the step's contract, progress, and the expert on real and generated goals."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

import envs
from envs.webshop import environment as webshop
from envs.webshop.catalogue import open_folder
from envs.webshop.engine import SEARCH, ShopEngine
from envs.webshop.environment import WebshopEnvironment
from envs.webshop.expert import expert_action
from envs.webshop.reward import count_options, has_attribute, type_factor, worth
from epo_jax.errors import UserError


@pytest.fixture
def generated(monkeypatch) -> WebshopEnvironment:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    return envs.make("webshop")


@pytest.fixture
def real(webshop_data) -> WebshopEnvironment:
    return WebshopEnvironment(data=webshop_data, nouns="light")


def play_expert(environment, task) -> float:
    environment.reset(task)
    for _ in range(12):
        _, reward, done, info = environment.step(environment.expert_action())
        if done:
            assert info["bought"] and info["success"] == (reward == 1)
            return reward
    raise AssertionError(f"{task} was not finished")


def test_splits_of_the_small_set(real):
    """Without the full human file, the published numbers are of synthetic goals."""
    assert [task.id for task in real.tasks("test")][:2] == ["synthetic/0", "synthetic/1"] and len(real.tasks("test")) == 200
    assert [task.number for task in real.tasks("train")] == list(range(1500, 3324))
    assert len(real.tasks("synthetic")) == 6910 and len(real.tasks("human")) == 13
    assert real.find_task("7", "test").id == "synthetic/7"
    assert real.find_task("train/0").id == real.find_task("0", "train").id == "synthetic/1500"
    assert real.find_task("synthetic/1500", "train").id == "synthetic/1500"
    for task in real.tasks("test")[::50]:
        assert real.find_task(task.id) == task


def test_published_numbers_from_a_file(tmp_path, webshop_data):
    for file in webshop_data.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "train_indices.json").write_text("[5, 3]")
    (tmp_path / "test_indices.json").write_text("[999999]")
    environment = WebshopEnvironment(data=tmp_path, nouns="light")
    assert [task.id for task in environment.tasks("train")] == ["synthetic/5", "synthetic/3"]
    with pytest.raises(UserError, match="numbers of goals below 6910"):
        environment.tasks("test")


@pytest.mark.parametrize(
    ("identifier", "split", "words"),
    [
        ("17", "all", "there is no split 'all'"),
        ("x", "human", "a goal is a number"),
        ("17", None, "does not start with a split"),
        ("nowhere/17", None, "does not start with a split"),
        ("999999", "generated:eval", "numbered from 0"),
        ("generated:eval/999999", None, "numbered from 0"),
        ("generated:eval/1", "generated:train", "there is no"),
        ("17", "human", "set WEBSHOP_DATA"),
    ],
)
def test_tasks_that_are_not_there(generated, identifier, split, words):
    with pytest.raises(UserError, match=words):
        generated.find_task(identifier, split)
    with pytest.raises(UserError, match="no game files"):
        generated.task_of_file("x")


def test_a_trip(generated):
    task = generated.tasks("generated:eval")[3]
    first = generated.reset(task)
    goal = generated.engine.goal
    assert first == f"WebShop [SEP] Instruction: [SEP] {goal.text} [SEP] Search"
    assert generated.admissible == [SEARCH] and generated.progress() == 0 and generated.task_id == task.id
    page, reward, done, info = generated.step(f"search[{goal.title}]")
    assert goal.asin in page and (reward, done) == (0.0, False) and generated.progress() == 0.2
    assert info["admissible"][:2] == ["click[back to search]", "click[next >]"] and not info["bought"]
    generated.step(f"click[{goal.asin.lower()}]")
    before = generated.progress()
    for value in goal.options:
        assert f"click[{value}]" in generated.admissible
        generated.step(f"click[{value}]")
        assert generated.progress() > before
        before = generated.progress()
    assert before == pytest.approx(0.9)
    page, reward, done, info = generated.step("click[buy now]")
    assert (reward, done, info) == (1.0, True, {"success": True, "bought": True, "admissible": []})
    assert page.startswith("Thank you for shopping with us!") and generated.progress() == 1
    assert generated.step("search[x]") == (webshop.TRIP_OVER, 0.0, True, info)
    assert generated.expert_action() == "look"


def test_a_poor_purchase_is_bought_but_no_success(generated):
    generated.reset("generated:eval/3")
    generated.step("search[" + generated.engine.goal.query + "]")
    other = next(name for name in generated.admissible if name.startswith("click[p") and generated.engine.goal.asin.lower() not in name)
    generated.step(other)
    _, reward, done, info = generated.step("click[buy now]")
    assert done and 0 < reward < 1 and info["bought"] and not info["success"] and generated.progress() == reward


@pytest.mark.parametrize("action", ["", "look", "search[]", "click[nowhere]", "click[search]", "search", "x" * 1_000_000, "search[" + "y " * 600_000 + "]", "\x00[\ud800]"])
def test_actions_that_do_nothing(generated, action):
    generated.reset("generated:eval/0")
    assert generated.step(action)[:3] == ("Nothing happens.", 0.0, False)
    full = envs.make("webshop", pages="full")
    page = full.reset("generated:eval/0")
    assert full.step(action)[:3] == (page, 0.0, False)


def test_random_actions_never_break_it_and_the_same_actions_give_the_same_pages(generated):
    other = envs.make("webshop")
    rng = random.Random(0)
    for task in generated.tasks("generated:train")[::200]:
        assert generated.reset(task) == other.reset(task)
        for _ in range(40):
            action = rng.choice([*generated.admissible, "search[shoes]", "search[red cables]"])
            assert generated.step(action) == other.step(action)
            assert 0 <= generated.progress() <= 1
            if generated.bought:
                break


def test_before_reset():
    with pytest.raises(RuntimeError, match="reset"):
        WebshopEnvironment().step("x")


def test_expert_wins_every_generated_goal(generated):
    for split in webshop.GENERATED_SPLITS:
        for task in generated.tasks(split)[::20]:
            assert play_expert(generated, task) == 1.0


def check_expert(folder, sample: slice) -> tuple[int, int]:
    """Plays the expert on synthetic goals; returns how many it wins, and how many there are.

    Where it does not win, a wanted option does not count although it is chosen: so says the reward, whatever is bought.
    """
    catalogue = open_folder(folder, "light")
    goals = catalogue.goals("synthetic")[sample]
    won = 0
    for goal in goals:
        engine = ShopEngine(catalogue, goal)
        for _ in range(10):
            engine.step(expert_action(engine))
            if engine.done:
                break
        chosen = worth(goal, catalogue.product(goal.asin), goal.options, catalogue.prices[goal.asin], catalogue.nouns)
        assert engine.done and engine.reward == chosen.reward
        assert engine.reward == 1 or (chosen.options < len(goal.options) and chosen.attributes == len(goal.attributes) and chosen.price)
        won += engine.reward == 1
    return won, len(goals)


def test_expert_on_sampled_real_goals(webshop_data):
    won, count = check_expert(webshop_data, slice(0, 300))
    assert won / count >= 0.9


@pytest.mark.slow
def test_expert_wins_every_real_goal_that_can_be_won(webshop_data):
    """6,452 of 6,910 (93.4 %); of the others no purchase at all is worth 1 (test_no_purchase_wins_the_other_goals)."""
    assert check_expert(webshop_data, slice(None)) == (6452, 6910)


@pytest.mark.slow
def test_no_purchase_wins_the_other_goals(webshop_data):
    """Of each goal the expert cannot win: every product that has the attributes, the kind and the price lacks a value for some option."""
    catalogue = open_folder(webshop_data, "light")
    hopeless = [goal for goal in catalogue.goals("synthetic") if count_options(goal, goal.options) < len(goal.options)]
    assert len(hopeless) == 6910 - 6452
    alike: dict[tuple, list] = {}
    for goal in hopeless:
        key = (goal.title, goal.attributes)
        if key not in alike:
            alike[key] = [
                product for product in catalogue.products
                if type_factor(goal, product, catalogue.nouns) == 1 and all(has_attribute(product, wanted) for wanted in goal.attributes)
            ]  # fmt: skip
        singles = [dataclasses.replace(goal, options=(value,), option_names=(name,)) for name, value in zip(goal.option_names, goal.options)]
        for product in alike[key]:
            values = [value for group in product.options.values() for value in group]
            winnable = all(any(count_options(single, [value]) for value in values) for single in singles)
            assert not (winnable and catalogue.prices[product.asin] <= goal.price_upper), (goal, product.asin)


def test_published_split_with_the_full_human_file(tmp_path):
    """12,087 human goals: numbers 0–199 and 1,500–3,323 of them."""
    records, asked = [], {}
    for number in range(101):
        asin = f"B{number}"
        records.append({
            "asin": asin, "name": "Mug", "full_description": "", "small_description": "", "category": "c", "query": "q",
            "product_category": "x", "customization_options": "", "pricing": "$5",
        })  # fmt: skip
        asked[asin] = [{"instruction": f"{number} {n}", "instruction_attributes": ["a"], "instruction_options": []} for n in range(100)]
    (tmp_path / "items_shuffle.json").write_text(json.dumps(records))
    (tmp_path / "items_human_ins.json").write_text(json.dumps(asked))
    environment = WebshopEnvironment(data=tmp_path, nouns="light")
    assert [task.id for task in environment.tasks("test")] == [f"human/{number}" for number in range(200)]
    assert [task.number for task in environment.tasks("train")] == list(range(1500, 3324)) and len(environment.tasks("human")) == 10_100
