"""The shopper reads instructions, shops from the pages alone, and is put into words that the literal actor can follow."""

from __future__ import annotations

import random

import pytest

import envs
from envs.speaker import MIXED, PRECISE, STYLES
from envs.webshop import phrases, shopper
from envs.webshop.environment import WebshopEnvironment
from envs.webshop.pages import SEPARATOR
from envs.webshop.shopper import Shopper, read_instruction
from epo_jax.rollout import literal


@pytest.mark.parametrize(
    ("text", "words", "kind", "options", "limit"),
    [
        (
            "Find me anti slip, memory foam hiking boots with color: light blue, and size: 9.5, and price lower than 70.00 dollars",
            "anti slip memory foam hiking boots", "hiking boots", {"color": "light blue", "size": "9.5"}, 70.0,
        ),
        (
            "Find me candles with soy wax for living room, and price lower than 60.00 dollars",
            "candles soy wax living room", "candles", {}, 60.0,
        ),
        (
            "Find me slim fit men's shorts with short sleeve for gym workout with color: a, b: c, and fit type: men",
            "slim fit men's shorts short sleeve gym workout", "men's shorts", {"color": "a, b: c", "fit type": "men"}, float("inf"),
        ),
        ("i need a red mug under $12.50", "red mug", "red mug", {}, 12.5),
        ("", "", "", {}, float("inf")),
    ],
)  # fmt: skip
def test_reads_instructions(text, words, kind, options, limit):
    wish = read_instruction(text)
    assert " ".join(wish.words) == words and " ".join(wish.kind) == kind
    assert wish.options == options and wish.limit == limit


RESULTS = SEPARATOR.join(
    "Instruction: |find a red wool hat|Back to Search|Page 1 (Total results: 2)|Next >|P1|Red cap|$5.0|P2|Red wool hat|$4.0 to $9.0".split("|")
).replace("Instruction: ", "Instruction:")
PRODUCT = SEPARATOR.join(
    "Instruction:|find a red wool hat|Back to Search|< Prev|color|red|blue|Hat|Price: $4.0|Rating: N.A.|Description|Features|Reviews|Buy Now".split("|")
)


def test_decides_on_the_page_alone():
    agent = Shopper()
    agent.reset("WebShop [SEP] Instruction: [SEP] find a red wool hat [SEP] Search")
    assert agent.act(["search[<query>]"]) == "search[red wool hat]"
    agent.observe(RESULTS, "search[hat]")  # somebody else typed something else
    hits = ["click[back to search]", "click[next >]", "click[p1]", "click[p2]"]
    assert agent.act(hits) == "click[p2]" and (agent.decision.purpose, agent.decision.place) == ("open", 2)
    agent.observe(PRODUCT, "click[p2]")
    buttons = [f"click[{name}]" for name in ("back to search", "< prev", "description", "features", "reviews", "buy now", "red", "blue")]
    assert agent.act(buttons) == "click[red]" and agent.decision.name == "color"
    agent.observe(PRODUCT, "click[red]")
    assert agent.act(buttons) == "click[buy now]"
    agent.observe("Instruction: [SEP] find a red wool hat [SEP] Back to Search [SEP] < Prev", "click[reviews]")
    assert agent.act(["click[back to search]", "click[< prev]"]) == "click[< prev]"
    assert agent.act([]) == "look"


def test_takes_what_others_do_as_it_is():
    agent = Shopper()
    agent.reset("WebShop [SEP] Instruction: [SEP] find a red wool hat [SEP] Search")
    agent.act(["search[<query>]"])
    # Nothing of the kind: its own query is still to be tried.
    agent.observe(RESULTS.replace("hat", "sock").replace("wool", "silk"), "search[what we need]")
    hits = ["click[back to search]", "click[next >]", "click[p1]", "click[p2]"]
    assert agent.act(hits) == "click[back to search]" and agent.decision.purpose == "restart"
    agent.observe("WebShop [SEP] Instruction: [SEP] find a red wool hat [SEP] Search", "click[back to search]")
    assert agent.act(["search[<query>]"]) == "search[red wool hat]"
    agent.observe(RESULTS, "search[red wool hat]")
    agent.act(hits)
    agent.observe(PRODUCT, "click[p1]")
    buttons = [f"click[{name}]" for name in ("back to search", "< prev", "description", "features", "reviews", "buy now", "red", "blue")]
    agent.act(buttons)
    agent.observe(PRODUCT, "click[red]")
    agent.act(buttons)
    agent.observe(PRODUCT, "click[blue]")  # a slip, which takes red's place
    assert agent.act(buttons) == "click[red]"
    agent.observe(PRODUCT, "click[p2]")  # not on this page: nothing happened
    assert agent.act(buttons) == "click[red]" and agent.open == "p1"


def test_nothing_found_searches_for_less():
    agent = Shopper()
    agent.reset("WebShop [SEP] Instruction: [SEP] Find me odd, rare brass lamps [SEP] Search")
    assert agent.act(["search[<query>]"]) == "search[odd rare brass lamps]"
    agent.observe("Instruction: [SEP] x [SEP] Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next >", "search[odd rare brass lamps]")
    assert agent.act(["click[back to search]", "click[next >]"]) == "click[back to search]" and agent.decision.purpose == "restart"
    agent.observe("WebShop [SEP] Instruction: [SEP] x [SEP] Search", "click[back to search]")
    assert agent.act(["search[<query>]"]) == "search[brass lamps]"


@pytest.mark.parametrize("text", ["", "Instruction:", " [SEP] ", "Instruction: [SEP]", "x" * 100_000])
def test_strange_pages_do_not_break_it(text):
    agent = Shopper()
    agent.reset(text)
    agent.observe(text, "click[x]")
    assert agent.act(["click[back to search]", "click[next >]", "click[p1]"]) in ("click[p1]", "click[back to search]")
    assert agent.act(["click[buy now]"]) == "click[buy now]"


def wins(environment, tasks, weights, actor) -> float:
    won = 0
    for number, task in enumerate(tasks):
        phrases.demonstrate(environment, task, number, weights, max_turns=10, actor=actor)
        won += environment.success
    return won / len(tasks)


def test_wins_in_the_project_s_shop_and_the_literal_actor_follows_its_words():
    environment = envs.make("webshop")
    tasks = environment.tasks("generated:eval")[:60]
    alone = wins(environment, tasks, MIXED, None)
    precise = wins(environment, tasks, PRECISE, literal.choose)
    mixed = wins(environment, tasks, MIXED, literal.choose)
    assert alone >= 0.95 and precise >= 0.95
    assert 0.5 <= mixed <= 0.9  # vague words cost trips, and leave something to learn


def test_wins_most_real_goals(webshop_data):
    environment = WebshopEnvironment(data=webshop_data, nouns="light")
    assert wins(environment, environment.tasks("test")[:60], MIXED, None) >= 0.7


def test_a_demonstration_is_true_and_depends_on_its_seed_alone():
    environment = envs.make("webshop")
    task = environment.tasks("generated:train")[7]
    environment.reset(task)
    turns = environment.demonstration(5, max_turns=10, actor=literal.choose)
    assert turns == environment.demonstration(5, max_turns=10, actor=literal.choose)
    assert turns != environment.demonstration(6, max_turns=10, actor=literal.choose)
    environment.reset(task)
    for strategy, action, observation in turns:
        assert strategy.startswith("Thought: ") and action == literal.choose(strategy, environment.admissible)
        assert environment.step(action)[0] == observation
    assert len(turns) <= 10


def test_every_purpose_has_words_in_every_style():
    rng = random.Random(0)
    for purpose in ("search", "open", "choose", "buy", "leave", "return", "restart", "wait"):
        decision = shopper.Decision("click[x]", purpose, "x", "color", 3)
        for style in STYLES:
            words = phrases.phrase(decision, style, rng)
            assert words.startswith("Thought: ") and "{" not in words and len(words.split()) <= 14
