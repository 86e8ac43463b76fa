"""Pages, available actions, rewards and ends against 60 episodes of the original."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from envs.webshop import pages
from envs.webshop.pages import Visit
from envs.webshop.products import Goal, product_of
from envs.webshop.reward import worth

SAMPLE = slice(None, None, 6)  # every sixth episode in the fast suite


def goal_of(told: dict) -> Goal:
    """A transcript's goal."""
    options = told["goal_options"]
    return Goal(
        asin=told["asin"],
        text=told["instruction_text"],
        attributes=tuple(told["attributes"]),
        options=tuple(options.values()),
        option_names=tuple(options),
        price_upper=told["price_upper"],
        title=told["name"],
        query=told["query"],
        product_category=told["product_category"],
    )


def hits_told(steps: Sequence[dict]) -> list[str]:
    """The hits of the search in steps[0], put together from the results pages that the transcript shows after it."""
    hits: dict[int, str] = {}
    total = 0
    for index, step in enumerate(steps):
        if index and step["action"].startswith("search["):
            break
        page = re.search(r"Page (\d+) \(Total results: (\d+)\)", step["observation"])
        if page:
            total = int(page[2])
            shown = re.findall(r"\[SEP\] (B[0-9A-Z]{9}|[0-9]{9}[0-9X]) \[SEP\]", step["observation"])
            hits.update(enumerate(shown, start=(int(page[1]) - 1) * 10))
    return [hits.get(place, "not shown") for place in range(total)]


def check(transcript: dict, products: dict, nouns) -> int:
    """Plays a transcript's actions; returns how many purchases it compared."""
    goal, visit, bought = goal_of(transcript["goal"]), Visit(), 0
    product = products.__getitem__
    assert pages.render(visit, goal, product) == transcript["reset"]
    for index, step in enumerate(transcript["steps"]):
        assert pages.clickables(visit, product) == step["available"]["clickables"]
        assert (visit.page == "search") == step["available"]["has_search_bar"]
        visit = pages.follow(visit, step["action"], product, lambda words: hits_told(transcript["steps"][index:]))
        reward = 0.0
        if visit.page == "done":
            bought += 1
            # The price of a range is drawn at random by the original; no transcript's limit lies within one.
            assert len({price <= goal.price_upper for price in products[visit.asin].prices}) == 1
            reward = worth(goal, products[visit.asin], visit.options.values(), products[visit.asin].prices[0], nouns).reward
        assert reward == pytest.approx(step["reward"], abs=1e-6)
        assert (visit.page == "done") == step["done"]
        assert pages.render(visit, goal, product, reward) == step["observation"]
    return bought


def test_sampled_episodes_equal_the_originals(transcripts, real_products, spacy_nouns):
    assert sum(check(transcript, real_products, spacy_nouns) for transcript in transcripts[SAMPLE]) >= 5


@pytest.mark.slow
def test_all_episodes_equal_the_originals(transcripts, real_products, spacy_nouns):
    assert len(transcripts) == 60
    assert sum(check(transcript, real_products, spacy_nouns) for transcript in transcripts) == 40


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("search[Red Shoes]", ("search", "red shoes")),
        ("click[Buy Now]", ("click", "buy now")),
        ("click[a] and more", ("click", "a")),
        ("search[a [b]", None),  # the last opening bracket counts, so the name is "search[a "
        ("search[]", None),
        ("search[ ]", ("search", " ")),
        ("Search[x]", None),
        (" search[x]", None),
        ("click[a\nb]", None),
        ("click[a]\nclick[b]", ("click", "a")),
        ("[x]", None),
        ("search", None),
        ("", None),
        ("]click[", None),
        ("click[x]]", ("click", "x]")),
        ("search[" + "x" * 1_000_000 + "]", None),
        ("[" * 1_000_000, None),
    ],
)
def test_what_an_action_says(action, parsed):
    assert pages.parse(action) == parsed


def test_parsing_agrees_with_the_originals_pattern():
    """`(.+)\\[(.+)\\]`, matched at the start of the text, on every text of up to six of these characters."""
    pattern = re.compile(r"(.+)\[(.+)\]")
    for name in ("click", "clic"):
        for length in range(5):
            for number in range(5**length):
                text = name + "".join("[]x\n "[number // 5**place % 5] for place in range(length))
                match = pattern.match(text)
                expected = match.groups() if match and match[1] in ("search", "click") else None
                assert pages.parse(text) == expected, text


RECORD = {
    "asin": "B1", "name": "Mug", "full_description": "\n", "small_description": ["one", "", " "], "category": "c", "query": " Q ",
    "product_category": "a › b", "customization_options": {"Size": [{"value": " L/XL "}, {"value": "features"}], "Gone": None},
}  # fmt: skip


def test_a_small_shop_by_hand():
    mug = product_of(RECORD)
    goal = Goal("B1", "find a mug", ("x",), ("l | xl",), ("size",), 10.0, "Mug", "q", "a › b")
    shop = {"B1": mug}.__getitem__

    def search(words):
        return ["B1"] if words == "mug" else []

    def go(visit, action):
        return pages.follow(visit, action, shop, search)

    found = go(Visit(), "search[mug]")
    assert pages.clickables(found, shop) == ["back to search", "next >", "b1"]
    assert go(found, "click[next >]").number == 2 and go(go(found, "click[next >]"), "click[< prev]") == found
    assert go(found, "click[buy now]") == found and go(found, "click[search]") == found
    item = go(found, "click[B1]")
    assert pages.render(item, goal, shop).endswith(
        "< Prev [SEP] size [SEP] l | xl [SEP] features [SEP] Mug [SEP] Price: $100.0 [SEP] Rating: N.A."
        " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    chosen = go(item, "click[L | XL]")
    assert chosen.options == {"size": "l | xl"} and item.options == {}
    # A button's name beats an option's value.
    assert go(item, "click[features]").page == "features"
    assert pages.render(go(item, "click[features]"), goal, shop).endswith("< Prev [SEP] one [SEP]  [SEP] ")
    assert pages.render(go(item, "click[description]"), goal, shop).endswith("Back to Search [SEP] < Prev")
    assert go(go(chosen, "click[reviews]"), "click[< prev]") == chosen
    assert go(chosen, "click[< prev]") == found and go(chosen, "click[back to search]") == Visit()
    done = go(chosen, "click[buy now]")
    assert done.page == "done" and go(done, "search[mug]") == done and pages.clickables(done, shop) == []
