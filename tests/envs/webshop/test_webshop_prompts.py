"""The worked example in the prompt is true: the shop answers each of its lines, and the literal actor reads them so."""

from __future__ import annotations

import pathlib

import envs.webshop
from envs.webshop.catalogue import Catalogue
from envs.webshop.engine import ShopEngine
from envs.webshop.products import Goal, Product
from epo_jax.rollout import prompts
from epo_jax.rollout.literal import choose

PROMPTS = pathlib.Path(envs.webshop.__file__).parent / "prompts"

TURNS = (
    "Thought: The search bar knows kinds, attributes and options, so search for fleece lined hoodie navy medium.",
    "Thought: The fleece hoodie for men is the only one within the price, so open K31.",
    "Thought: The instruction asks for navy, so choose navy.",
    "Thought: Now the size: choose medium.",
    "Thought: Color, size and price all fit, so buy now.",
)


def example_shop() -> ShopEngine:
    """The shop that the example tells of."""

    def product(asin, title, price, bullet, colours, sizes):
        options = {"color": colours, "size": sizes}
        return Product(asin, title, "", (bullet,), (price,), f"${price}", options, ("fleece lined",), "fashion", "hoodies", "Clothing › Hoodies")

    products = [
        product("K31", "Alba Fleece Hoodie For Men", 34.99, "Machine wash", ("grey", "navy"), ("small", "medium", "large")),
        product("K20", "Norvik Fleece Pullover Hoodie", 79.0, "Fleece lined", ("navy", "red"), ("medium", "large")),
        product("K47", "Tendo Rain Jacket With Hood", 29.5, "Water resistant", ("navy",), ("medium",)),
    ]
    text = "i need a fleece lined hoodie in navy, size medium, and price lower than 40.00 dollars"
    goal = Goal("K31", text, ("fleece lined",), ("navy", "medium"), None, 40.0, products[0].title, "hoodies", "Clothing › Hoodies")
    return ShopEngine(Catalogue(products), goal)


def example_text() -> str:
    """The example as the engine and the literal actor make it from TURNS."""
    engine = example_shop()
    blocks = ["Here is an example of such a conversation.", engine.reset()]
    for strategy in TURNS:
        action = choose(strategy, engine.admissible_commands())
        blocks.append(f"{strategy}\nAgent1's {action}\n{engine.step(action)}")
    assert engine.done and engine.reward == 1
    return "\n\n".join([*blocks, 'Here is the task that you advise on. Reply "OK" when you are ready.']) + "\n"


def test_example_is_what_the_shop_says() -> None:
    assert (PROMPTS / "example.txt").read_text() == example_text()


def test_prompts_load_in_both_styles() -> None:
    full, brief = prompts.load("webshop", "full"), prompts.load("webshop", "brief")
    assert "Thought:" in full.instruction and full.instruction.endswith("ready.") and full.turn.startswith("Agent1's ")
    assert brief.opening("page") == [{"role": "user", "content": "page"}]
