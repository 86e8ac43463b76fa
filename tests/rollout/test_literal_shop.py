"""The literal actor in a shop against hand-made cases of its rule."""

from __future__ import annotations

import random
import time

import pytest

from epo_jax.rollout.literal import choose

SEARCH = ["search[<query>]"]
HITS = ["click[back to search]", "click[next >]", "click[p101]", "click[p102]", "click[p203]"]
SECOND_PAGE = ["click[back to search]", "click[< prev]", "click[next >]", "click[b09xyz1234]", "click[b01]"]
PRODUCT = [
    "click[back to search]", "click[< prev]", "click[description]", "click[features]", "click[reviews]", "click[buy now]",
    "click[8]", "click[12]", "click[blue]", "click[light blue]", "click[3.5 oz (pack of 2)]",
]  # fmt: skip
FEATURES = ["click[back to search]", "click[< prev]"]


@pytest.mark.parametrize(
    ("strategy", "admissible", "action"),
    [
        # the action itself
        ("search[red shoes]", SEARCH, "search[red shoes]"),
        ("Thought: CLICK[P102] it is", HITS, "click[p102]"),
        ("click[p999]", HITS, "click[p101]"),  # not there: "click" alone opens the first
        ("search[red shoes]", HITS, "click[back to search]"),
        # queries
        ("Thought: search for red shoes.", SEARCH, "search[red shoes]"),
        ("Look for a 2.5 oz candle. Then open it.", SEARCH, "search[2.5 oz candle]"),
        ('Type "usb cable" and wait', SEARCH, "search[usb cable]"),
        ("Thought: find what we need.", SEARCH, "search[what we need]"),
        ("Thought: we need slippers!", SEARCH, "search[slippers]"),
        ("the search bar is here, so look for mugs", SEARCH, "search[mugs]"),
        ("blue mugs", SEARCH, "search[blue mugs]"),
        ("find [odd] mugs", SEARCH, "search[odd mugs]"),
        ("buy now", SEARCH, "search[buy now]"),
        ("Thought:", SEARCH, "look"),
        ("", SEARCH, "look"),
        # products
        ("open p203, it fits best", HITS, "click[p203]"),
        ("p102 or p203?", HITS, "click[p102]"),
        ("open the second product", HITS, "click[p102]"),
        ("have a look at the 3rd one", HITS, "click[p203]"),
        ("number 2", HITS, "click[p102]"),
        ("the last one", HITS, "click[p203]"),
        ("the top hit of this search", HITS, "click[p101]"),
        ("the seventh", HITS, "look"),
        ("open one that fits", HITS, "click[p101]"),
        ("one of these looks right", HITS, "look"),
        ("B09XYZ1234 please", SECOND_PAGE, "click[b09xyz1234]"),
        # options: the longest, then the first
        ("choose light blue", PRODUCT, "click[light blue]"),
        ("blue, size 8", PRODUCT, "click[blue]"),
        ("size 8", PRODUCT, "click[8]"),
        ("size 18", PRODUCT, "look"),
        ("the 3.5 oz (pack of 2) one", PRODUCT, "click[3.5 oz (pack of 2)]"),
        ("buy it in blue", PRODUCT, "click[blue]"),
        # the till
        ("blue is chosen, so buy now", PRODUCT, "click[buy now]"),
        ("buy it", PRODUCT, "click[buy now]"),
        ("order this one", PRODUCT, "click[buy now]"),
        ("that is the one", PRODUCT, "look"),
        # other buttons
        ("next page", HITS, "click[next >]"),
        ("go back", SECOND_PAGE, "click[< prev]"),
        ("go back", HITS, "look"),  # no such button here
        ("go back to search", PRODUCT, "click[back to search]"),  # the longer of two that begin together
        ("go back and search again", PRODUCT, "click[< prev]"),  # said first
        ("search again", PRODUCT, "click[back to search]"),
        ("read the features", PRODUCT, "click[features]"),
        ("check the description first", PRODUCT, "click[description]"),
        ("any reviews?", PRODUCT, "click[reviews]"),
        ("return to the product", FEATURES, "click[< prev]"),
        ("keep going", FEATURES, "look"),
    ],
)
def test_rule(strategy, admissible, action):
    assert choose(strategy, admissible) == action


def test_any_text_gives_an_action_that_is_there_or_nothing():
    rng = random.Random(0)
    letters = "search for click[]\"'\n.p1028 blue buy now \ud800茶("
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 40)))
        for admissible in (HITS, SECOND_PAGE, PRODUCT, FEATURES):
            assert choose(text, admissible) in (*admissible, "look")
        query = choose(text, SEARCH)
        assert query == "look" or (query.startswith("search[") and query.endswith("]") and query.count("[") == query.count("]") == 1)


def test_long_texts_take_no_time():
    started = time.process_time()
    for text in ("search for " * 100_000, "a" * 1_000_000, '"' * 1_000_000, "the " * 250_000 + "second"):
        choose(text, HITS)
        choose(text, SEARCH)
    assert time.process_time() - started < 2
