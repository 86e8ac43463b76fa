"""Goals against the original's numbering, and the price limits against their definition."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from envs.webshop.catalogue import Catalogue, open_folder
from envs.webshop.goals import goals_of
from envs.webshop.products import product_of
from epo_jax.errors import UserError


def product(asin="B1", pricing="$15.00", **changes):
    record = {
        "asin": asin, "name": "Mug", "full_description": "d", "small_description": ["b"], "category": "c", "query": "mugs",
        "product_category": "x › y", "pricing": pricing,
        "customization_options": {"Size": [{"value": "S"}, {"value": "L"}], "Color": [{"value": "Red"}, {"value": "Blue"}]},
    } | changes  # fmt: skip
    attributes = {"attributes": ["soft"], "instruction": "Find me soft mugs", "instruction_attributes": ["soft"]}
    asked = [
        {"instruction": "i want a mug.", "instruction_attributes": ["soft"], "instruction_options": ["red"]},
        {"instruction": "no attributes, no goal", "instruction_attributes": [], "instruction_options": []},
    ]
    return product_of(record, attributes=attributes, human=asked)


def test_numbers_equal_the_originals(webshop_data, transcripts, real_products):
    """Goal by goal; the price limits were drawn without a seed there, so they only have to be possible ones."""
    goals = open_folder(webshop_data, "light").goals("synthetic")
    assert len(goals) == 6910
    for transcript in transcripts:
        goal, told = goals[transcript["goal_index"]], transcript["goal"]
        assert (goal.asin, goal.title, goal.query, goal.product_category) == (told["asin"], told["name"], told["query"], told["product_category"])
        assert dict(zip(goal.option_names, goal.options)) == told["goal_options"] and list(goal.attributes) == told["attributes"]
        assert goal.text.partition(", and price")[0] == told["instruction_text"].partition(", and price")[0]
        prices = real_products[goal.asin].prices
        for limit in (goal.price_upper, told["price_upper"]):
            assert min(prices) + 10 < limit <= max(prices) + 40 or (limit == 1e6 and max(prices) > 970)
    assert len(open_folder(webshop_data, "light").goals("human")) == 13


def test_a_synthetic_goal_for_each_combination():
    goals = Catalogue([product()]).goals("synthetic")
    assert {goal.options for goal in goals} == {("red", "s"), ("red", "l"), ("blue", "s"), ("blue", "l")}
    goal = next(goal for goal in goals if goal.options == ("red", "l"))
    assert goal.option_names == ("color", "size")
    assert goal.text == f"Find me soft mugs with color: red, and size: l, and price lower than {goal.price_upper:.2f} dollars"
    plain = Catalogue([product(customization_options="")]).goals("synthetic")
    assert len(plain) == 1 and plain[0].text.startswith("Find me soft mugs, and price lower than ")


def test_human_goals():
    (goal,) = Catalogue([product()]).goals("human")
    assert goal.text == f"i want a mug, and price lower than {goal.price_upper:.2f} dollars"
    assert goal.options == ("red",) and goal.option_names is None


def test_price_limits():
    """The larger of two of the next four steps: in 1 of 6 draws the second step, in 2 the third, in 3 the fourth."""
    count = 3000
    products = [product(f"B{number}", customization_options="") for number in range(count)]
    limits = Counter(goal.price_upper for goal in goals_of("synthetic", products, dict.fromkeys((p.asin for p in products), 15.0), random.Random(0)))
    assert set(limits) == {30.0, 40.0, 50.0}
    for limit, share in ((30.0, 1 / 6), (40.0, 2 / 6), (50.0, 3 / 6)):
        assert limits[limit] / count == pytest.approx(share, abs=0.03)  # three standard deviations
    for price, known in ((970.0, {990.0}), (980.0, {1e6}), (2000.0, {1e6}), (20.0, {40.0, 50.0, 60.0})):
        goals = goals_of("synthetic", products[:50], dict.fromkeys((p.asin for p in products), price), random.Random(0))
        assert {goal.price_upper for goal in goals} == known
    assert "price" not in goals_of("human", [product()], {"B1": 2000.0}, random.Random(0))[0].text


def test_the_same_seed_gives_the_same_prices_and_limits():
    products = [product(f"B{number}", pricing="$10.00 $90.00") for number in range(20)]
    one, same, other = Catalogue(products), Catalogue(products), Catalogue(products, seed=1)
    assert one.prices == same.prices != other.prices and all(10 <= price <= 90 for price in one.prices.values())
    # Whichever kind is asked for first.
    human = same.goals("human")
    assert one.goals("synthetic") == same.goals("synthetic") != other.goals("synthetic") and one.goals("human") == human


def test_what_is_wrong_is_told():
    with pytest.raises(UserError, match="without products"):
        Catalogue([])
    with pytest.raises(UserError, match="synthetic, human"):
        Catalogue([product()]).goals("all")
