"""Brief pages: what they leave out, and that nothing else is lost."""

from __future__ import annotations

import random

import pytest

import envs
from envs.webshop import phrases
from envs.webshop.engine import SEARCH
from envs.webshop.pages import SEPARATOR
from epo_jax.errors import UserError

TASK = "generated:eval/3"


def test_a_trip_in_few_words():
    environment = envs.make("webshop")
    assert environment.reset(TASK) == envs.make("webshop", pages="full").reset(TASK)
    goal = environment.engine.goal
    product = environment.engine.catalogue.product(goal.asin)
    results = environment.step(f"search[{goal.title}]")[0]
    assert results.startswith(f"Page 1 (Total results: 50) [SEP] {goal.asin} [SEP] {goal.title} [SEP] {product.price_tag} [SEP] ")
    second = environment.step("click[next >]")[0]
    assert second.startswith("Page 2 (Total results: 50) [SEP] P") and second.count(SEPARATOR) == 30
    assert environment.step("click[< prev]")[0] == results
    item = environment.step(f"click[{goal.asin.lower()}]")[0]
    options = [part for name, values in product.options.items() for part in (name, *values)]
    assert item.split(SEPARATOR) == [*options, product.title, f"Price: {product.price_tag}", "Rating: N.A."]
    assert environment.step("click[features]")[0] == SEPARATOR.join(product.bullets)
    assert environment.step("click[reviews]")[0] == "Nothing happens."  # not from here
    assert environment.step("click[< prev]")[0] == item
    first, second = goal.option_names
    assert environment.step(f"click[{goal.options[0]}]")[0] == f"{first}: {goal.options[0]}"
    assert environment.step(f"click[{goal.options[1]}]")[0] == f"{first}: {goal.options[0]} [SEP] {second}: {goal.options[1]}"
    assert environment.step("dance")[0] == "Nothing happens."
    assert environment.step("click[buy now]")[0] == "Thank you for shopping with us! [SEP] Your score: 1.00"


def test_pages_are_shorter_and_everything_else_is_the_same():
    full, brief = envs.make("webshop", pages="full"), envs.make("webshop", pages="brief")
    rng = random.Random(1)
    long = short = 0
    for task in full.tasks("generated:train")[::300]:
        full.reset(task), brief.reset(task)
        for _ in range(30):
            action = rng.choice(full.admissible).replace(SEARCH, "search[shoes boots cables]")
            one, other = full.step(action), brief.step(action)
            assert one[1:] == other[1:] and full.progress() == brief.progress()
            long, short = long + len(one[0]), short + len(other[0])
            if one[2]:
                break
    assert short < 0.75 * long


def test_the_shopper_decides_the_same():
    """It needs nothing that brief pages leave out."""
    full, brief = envs.make("webshop", pages="full"), envs.make("webshop", pages="brief")
    for number, task in enumerate(full.tasks("generated:eval")[::25]):
        turns = [[turn[:2] for turn in phrases.demonstrate(environment, task, number)] for environment in (full, brief)]
        assert turns[0] == turns[1]


def test_real_pages_are_full(webshop_data):
    environment = envs.make("webshop", data=webshop_data, nouns="light")
    first = environment.reset("synthetic/0")
    assert environment.step("look")[0] == first
    with pytest.raises(UserError, match="full, brief or auto"):
        envs.make("webshop", pages="short")
