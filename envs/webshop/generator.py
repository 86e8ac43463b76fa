"""The project's own shop: a catalogue and its goals from a seed, so that nothing needs downloading.

Products of one kind differ in attributes, options and price, and their titles tell some of it: finding the right one among its
like is the task. Every goal can be won, and by what the pages show.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from envs.webshop.assortment import BRANDS, KINDS, OPTION_VALUES, Kind, shown_name
from envs.webshop.catalogue import Catalogue
from envs.webshop.products import Goal, Product

SPLITS = ("generated:train", "generated:eval")
SEED = 0
PRODUCTS_PER_KIND = 14
# Of so many products of a kind one is sought in `generated:eval` only.
_EVALUATION_EVERY = 5
_ATTRIBUTES_IN_TITLE, _ATTRIBUTES, _ATTRIBUTES_WANTED = 2, 3, 2


def generate_products(seed: int = SEED) -> list[Product]:
    """The products of a seed, kind by kind; ids "P100", "P101", …, short because agents must repeat them."""
    rng = random.Random(seed)
    products: list[Product] = []
    for kind in KINDS:
        taken: set[tuple[str, ...]] = set()
        for _ in range(PRODUCTS_PER_KIND):
            products.append(_product(f"P{100 + len(products)}", kind, taken, rng))
    return products


def _product(asin: str, kind: Kind, taken: set[tuple[str, ...]], rng: random.Random) -> Product:
    attributes = tuple(rng.sample(kind.attributes, _ATTRIBUTES))
    while attributes[:_ATTRIBUTES_IN_TITLE] in taken and len(taken) < len(kind.attributes) * (len(kind.attributes) - 1) // 2:
        attributes = tuple(rng.sample(kind.attributes, _ATTRIBUTES))
    # Two titles of a kind name different pairs of attributes, as long as there are enough pairs.
    taken.update((attributes[:_ATTRIBUTES_IN_TITLE], attributes[:_ATTRIBUTES_IN_TITLE][::-1]))
    options = {}
    for name in kind.options:
        values = OPTION_VALUES[name]
        offered = set(rng.sample(values, min(len(values), rng.randint(2, 4))))
        options[shown_name(name)] = tuple(value for value in values if value in offered)
    price = round(rng.randint(*kind.prices) - 0.01, 2)
    title = f"{rng.choice(BRANDS)} {' '.join(attributes[:_ATTRIBUTES_IN_TITLE])} {kind.name}"
    wanted = tuple(sorted(rng.sample(attributes, _ATTRIBUTES_WANTED)))
    return Product(
        asin=asin,
        title=title,
        description=f"{kind.name.capitalize()} by a maker who cares. {attributes[-1].capitalize()}.",
        bullets=tuple(f"{attribute.capitalize()}" for attribute in attributes),
        prices=(price,),
        price_tag=f"${price}",
        options=options,
        attributes=attributes,
        category=kind.category.partition(" ")[0].lower(),
        query=kind.name,
        product_category=kind.category,
        instruction=f"Find me {', '.join(wanted)} {kind.name}",
        instruction_attributes=wanted,
    )


def kind_words(title: str) -> list[str]:
    """The nouns of a title here: the words that name kinds. Brands and attributes do not make two products alike."""
    return [word for word in title.split() if word in _KIND_WORDS]


_KIND_WORDS = frozenset(word for kind in KINDS for word in kind.name.split())


@functools.cache
def catalogue(seed: int = SEED) -> Catalogue:
    """The shop of a seed."""
    return Catalogue(generate_products(seed), kind_words, seed)


@functools.cache
def goals(split: str, seed: int = SEED) -> Sequence[Goal]:
    """The goals of `generated:train` or `generated:eval`: no product is sought in both, and no instruction stands in both."""
    shop = catalogue(seed)
    sought = {product.asin for product in shop.products[::_EVALUATION_EVERY]}
    training = tuple(goal for goal in shop.goals("synthetic") if goal.asin not in sought)
    if split == "generated:train":
        return training
    texts = {goal.text for goal in training}
    return tuple(goal for goal in shop.goals("synthetic") if goal.asin in sought and goal.text not in texts)
