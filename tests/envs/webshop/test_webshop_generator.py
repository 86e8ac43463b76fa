"""The project's own shop: what it holds, and that its splits share nothing."""

from __future__ import annotations

import dataclasses

from envs.webshop import generator
from envs.webshop.assortment import KINDS, OPTION_VALUES, shown_name
from envs.webshop.products import Goal
from envs.webshop.reward import count_options, worth


def test_hundreds_of_products_of_many_kinds():
    products = generator.catalogue().products
    assert len(products) >= 300 and len({product.asin for product in products}) == len(products)
    assert len({product.query for product in products}) == len(KINDS) >= 20
    assert all(len(product.asin) <= 10 and product.asin == product.asin.upper() for product in products)
    assert all(product.options and 3 <= product.prices[0] <= 250 and product.price_tag.count(".") == 1 for product in products)
    # Titles tell the products of a kind apart.
    assert len({product.title for product in products}) > 0.98 * len(products)


def test_a_seed_says_everything():
    assert generator.generate_products(5) == generator.generate_products(5) != generator.generate_products(6)


def test_splits_share_no_goal():
    training, evaluation = map(generator.goals, generator.SPLITS)
    assert len(training) > 1500 and len(evaluation) > 300
    assert not {goal.text for goal in training} & {goal.text for goal in evaluation}
    assert not {goal.asin for goal in training} & {goal.asin for goal in evaluation}
    assert {goal.query for goal in training} == {goal.query for goal in evaluation} == {kind.name for kind in KINDS}


def test_every_goal_is_worth_one_and_not_without_its_options():
    catalogue = generator.catalogue()
    for goal in (*generator.goals("generated:train"), *generator.goals("generated:eval")):
        product, price = catalogue.product(goal.asin), catalogue.prices[goal.asin]
        assert worth(goal, product, goal.options, price, catalogue.nouns).reward == 1
        assert worth(goal, product, goal.options[1:], price, catalogue.nouns).reward < 1


def test_no_value_passes_for_another():
    """Else a wrong choice would count."""
    for name, values in OPTION_VALUES.items():
        for wanted in values:
            goal = Goal("P", "", (), (wanted,), (shown_name(name),), 1.0, "", "", "")
            assert [value for value in values if count_options(goal, [value])] == [wanted]


def test_a_product_of_another_kind_is_worth_nothing():
    """Unless the kinds share a word, as usb cables and hdmi cables do."""
    catalogue = generator.catalogue()
    for goal in generator.goals("generated:train")[::100]:
        for other in catalogue.products:
            if not set(other.query.split()) & set(goal.query.split()):
                assert worth(goal, other, goal.options, catalogue.prices[other.asin], catalogue.nouns).reward == 0


def test_products_are_well_formed():
    for product in generator.generate_products(1):
        assert set(product.instruction_attributes) <= set(product.attributes)
        assert all(attribute in " ".join(product.bullets).lower() for attribute in product.attributes)
        assert dataclasses.asdict(product)["price_tag"] == f"${product.prices[0]}"
