"""The reward's parts against cases worked out by hand."""

from __future__ import annotations

import pytest

from envs.webshop import nouns
from envs.webshop.products import Goal, product_of
from envs.webshop.reward import count_options, has_attribute, type_factor, worth
from epo_jax.errors import UserError


def product(name="Blue Cotton Shirt", query="shirts", category="Clothing › Men › Shirts", attributes=("machine wash",)):
    record = {
        "asin": "B1", "name": name, "full_description": "Dries fast.", "small_description": ["Button closure", "Long sleeve"],
        "category": "fashion", "query": query, "product_category": category, "customization_options": "", "pricing": "$20.00",
    }  # fmt: skip
    return product_of(record, attributes={"attributes": list(attributes)})


def goal(attributes=("machine wash",), options=(), names=None, price=30.0, title="Blue Cotton Shirt", query="shirts"):
    return Goal("B1", "find me shirts", attributes, options, names, price, title, query, "Clothing › Men › Shirts")


@pytest.mark.parametrize(
    ("attribute", "there"),
    [
        ("machine wash", True),
        ("machine washable", True),  # 24 of 28 letters are common: 86
        ("machine washables", False),  # 24 of 29: 83
        ("wash machine", True),
        ("long sleeve", True),  # in a bullet
        ("closure long", True),  # across two bullets, joined by a blank
        ("dries fast", True),
        ("cotton", True),
        ("Cotton", False),  # texts are in lower case, the goal's words are taken as they are
        ("short sleeve", False),
    ],
)
def test_attributes(attribute, there):
    assert has_attribute(product(), attribute) is there


@pytest.mark.parametrize(
    ("wanted", "chosen", "count"),
    [
        ({"size": "queen"}, ["queen"], 1),
        ({"size": "xx-large"}, ["x-large"], 0),  # the name takes part: "size xx large" and "x large"
        ({"color": "light blue"}, ["blue"], 1),
        ({"color": "titanium"}, ["titanium"], 0),  # chosen "tan", wanted "color titanium"
        ({"color": "black"}, ["jet black"], 1),
        ({"color": "black", "size": "8"}, ["8", "black"], 2),
        ({"color": "茶"}, ["茶"], 1),
        ({"color": "é"}, ["é"], 0),  # nothing is left to compare
        (["titanium"], ["titanium"], 1),  # people's goals have no names
        (["xx-large"], ["x-large"], 1),
        ([], ["x"], 0),
        (["x"], [], 0),
    ],
)
def test_options(wanted, chosen, count):
    if isinstance(wanted, dict):
        assert count_options(goal(options=tuple(wanted.values()), names=tuple(wanted)), chosen) == count
    else:
        assert count_options(goal(options=tuple(wanted)), chosen) == count


@pytest.mark.parametrize(
    ("title", "query", "category", "factor"),
    [
        ("Blue Cotton Shirt", "other", "x", 1.0),
        ("Cotton Bag", "other", "x", 1.0),  # one noun of three
        ("Shirt", "other", "x", 1.0),
        ("Lamp", "shirts", "Clothing › Men › Shirts", 0.0),  # no noun in common, whatever the category
    ],
)
def test_type_by_title(title, query, category, factor):
    words = {"Blue Cotton Shirt": ["blue", "cotton", "shirt"]}
    assert type_factor(goal(), product(title, query, category), lambda text: words.get(text, text.lower().split())) == factor


@pytest.mark.parametrize(
    ("shared", "query", "category", "factor"),
    [
        (1, "shirts", "x", 1.0),
        (1, "other", "Men › Clothing › y", 1.0),
        (1, "other", "Men › y", 0.5),
        (2, "other", "Men › y", 0.5),  # 2 of 10 is not above 0.2
        (3, "other", "Men › y", 1.0),
    ],
)
def test_type_of_a_long_title(shared, query, category, factor):
    tagged = {"goal": [f"w{n}" for n in range(10)], "bought": [f"w{n}" for n in range(shared)]}
    assert type_factor(goal(title="goal"), product("bought", query, category), tagged.__getitem__) == factor


def test_a_title_without_nouns_and_one_of_eleven():
    assert type_factor(goal(title="a"), product("b", "other", "x"), lambda text: []) == 0.5  # 0.2
    tagged = {"goal": [f"w{n}" for n in range(11)], "bought": ["w3"]}
    assert type_factor(goal(title="goal"), product("bought"), tagged.__getitem__) == 0.1


def test_the_whole():
    found = worth(goal(("machine wash", "short sleeve"), ("l",), ("size",)), product(), ["l"], 20.0, nouns.light)
    assert (found.attributes, found.options, found.price, found.type_factor) == (1, 1, True, 1.0)
    assert found.reward == pytest.approx(3 / 4)
    assert worth(goal(price=20.0), product(), [], 20.0, nouns.light).reward == 1.0
    assert worth(goal(price=19.99), product(), [], 20.0, nouns.light).reward == 0.5


def test_which_words_are_nouns():
    assert nouns.light("The 4-Pack Women's Running Shoes, for Trails & Roads") == ("pack", "women's", "running", "shoes", "trails", "roads")
    assert nouns.choose("light") is nouns.light
    with pytest.raises(UserError, match="auto, light or spacy"):
        nouns.choose("nltk")
