"""Goals: what shoppers are sent for, numbered as the original numbers them.

A synthetic goal asks for a product's attributes and one combination of its options; a human one is what a person wrote when
shown the product. Both add a price limit: the larger of two draws from the next four 10-dollar steps above the price. The
original draws without a seed, so its limits differ from run to run; its order does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping

from envs.webshop.products import Goal, Product

KINDS = ("synthetic", "human")
NO_LIMIT = 1_000_000.0
_PRICE_STEPS = tuple(10.0 * step for step in range(1, 100))
_ORDER_SEED = 233  # the original shuffles its goals with this seed, whatever was drawn before

# Goals of the full human file, after the original's shuffle: 12,087. Numbers below 1,500 are the original's test and development
# goals. Published runs train on 1,824 goals and test on 200.
FULL_HUMAN = 10_000
TEST_NUMBERS = range(200)
TRAIN_NUMBERS = range(1_500, 1_500 + 1_824)


def draw_prices(products: Iterable[Product], rng: random.Random) -> dict[str, float]:
    """asin -> what the product costs at the till, in dollars: uniform within a range of prices."""
    return {product.asin: rng.uniform(*product.prices) if len(product.prices) == 2 else product.prices[0] for product in products}


def goals_of(kind: str, products: Iterable[Product], prices: Mapping[str, float], rng: random.Random) -> list[Goal]:
    """All goals of a kind in the original's order. rng draws the price limits, in the products' order."""
    make = _human_goals if kind == "human" else _synthetic_goals
    goals = [goal for product in products for goal in make(product, prices[product.asin], rng)]
    random.Random(_ORDER_SEED).shuffle(goals)
    return goals


def _synthetic_goals(product: Product, price: float, rng: random.Random) -> list[Goal]:
    if product.instruction is None or not product.instruction_attributes:
        return []
    limit, limit_text = _price_limit(price, rng)
    names = tuple(sorted(product.options))
    goals = []
    for values in itertools.product(*(product.options[name] for name in names)):
        wanted = ", and ".join(f"{name}: {value}" for name, value in zip(names, values))
        text = product.instruction + (f" with {wanted}" if wanted else "") + limit_text
        goals.append(_goal(product, text, product.instruction_attributes, values, names, limit))
    return goals


def _human_goals(product: Product, price: float, rng: random.Random) -> list[Goal]:
    goals = []
    for asked in product.human:
        if asked.attributes:
            limit, limit_text = _price_limit(price, rng)
            goals.append(_goal(product, asked.text.strip(".") + limit_text, asked.attributes, asked.options, None, limit))
    return goals


def _price_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit above a price, and how an instruction says it; none for the dearest products."""
    above = [step for step in _PRICE_STEPS if step > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _goal(product: Product, text: str, attributes: tuple, options: tuple, names: tuple | None, limit: float) -> Goal:
    return Goal(product.asin, text, attributes, options, names, limit, product.title, product.query, product.product_category)
