"""The search engine against real Lucene's answers, and its parts against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from envs.webshop import search
from envs.webshop.products import product_of


def agreement(real_products, shared, queries: slice) -> tuple[float, float, float]:
    """Shares of queries: equal first hit, common hits among the first ten, identical first page."""
    asins = list(real_products)
    index = search.build(search.document(product) for product in real_products.values())
    told = [json.loads(line) for line in (shared / "reference" / "webshop_lucene_rankings.jsonl").open()][queries]
    first = common = page = 0.0
    for ranking in told:
        ours = [asins[number] for number in index.search(ranking["query"])]
        theirs = [hit["asin"] for hit in ranking["hits"]]
        assert len(ours) == len(theirs)
        first += ours[0] == theirs[0]
        common += len(set(ours[:10]) & set(theirs[:10])) / 10
        page += ours[:10] == theirs[:10]
    return first / len(told), common / len(told), page / len(told)


def test_agrees_with_lucene(real_products, shared):
    first, common, page = agreement(real_products, shared, slice(None))
    assert first >= 0.98 and common >= 0.98 and page >= 0.70


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Women's running SHOES", ["women", "run", "shoe"]),
        ("women\u2019s", ["women"]),
        ("the cat is on a mat", ["cat", "mat"]),
        ("2.5 oz, 1,000 pcs; wi-fi", ["2.5", "oz", "1,000", "pc", "wi", "fi"]),
        ("don't 4.5x6 l | xl size: s", ["don't", "4.5x6", "l", "xl", "size", "s"]),
        ("... ' - ", []),
        ("", []),
        ("easy relational happy", ["easi", "relat", "happi"]),
    ],
)
def test_words(text, words):
    assert search.analyse(text) == words


@pytest.mark.parametrize(
    ("length", "stored"),
    [(0, 0), (1, 1), (23, 23), (24, 24), (39, 39), (40, 40), (41, 40), (42, 42), (55, 54), (56, 56), (59, 56), (60, 60), (107, 104), (1000, 984)],
)
def test_lengths_in_one_byte(length, stored):
    """Lucene's SmallFloat.byte4ToInt(intToByte4(length)), from its own table of 256 values."""
    table = list(range(24)) + [24 + (value if value < 8 else (8 + (value & 7)) << ((value >> 3) - 1)) for value in range(232)]
    assert max(value for value in table if value <= length) == stored
    assert search.one_byte_length(length) == stored


def test_scores_by_hand():
    index = search.build(["red red shoe", "blue shoe", "", "lamp"])
    assert index.search("red") == [0] and index.search("shoe") == [1, 0] and index.search("the zebra") == []
    mean = (3 + 2 + 1) / 3
    expected = math.log(1 + (4 - 1 + 0.5) / 1.5) * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / mean))
    number = index.words["red"]
    assert index.scores[index.starts[number]] == pytest.approx(expected, rel=1e-6)
    # Equal scores keep the documents' order, and a word said twice counts twice.
    assert search.build(["a1 b1", "b1 a1", "c1 d1"]).search("a1") == [0, 1]
    assert search.build(["a1 b1", "b1 c1", "b1 c1"]).search("c1 a1")[0] == 0
    assert search.build(["a1 b1", "b1 c1", "b1 c1"]).search("c1 c1 c1 a1")[0] == 1


def test_no_more_than_fifty_hits_and_ties_in_order():
    index = search.build(["same words"] * 1000 + ["same"])
    assert index.search("words") == list(range(50))
    assert index.search("same")[0] == 1000  # the shorter one first
    assert search.build([]).search("x") == []


def test_what_is_searched_of_a_product():
    product = product_of({
        "asin": "B1", "name": "Mug", "full_description": "Big.", "small_description": ["First", "Second"], "category": "c", "query": "q",
        "product_category": "x", "customization_options": {"Size": [{"value": "S"}, {"value": "M/L"}], "color": [{"value": "Red"}]},
    })  # fmt: skip
    assert search.document(product) == "mug big. first size: s, m | l, and color: red"
