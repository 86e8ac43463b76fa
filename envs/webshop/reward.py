"""What a purchase is worth: `R = r_type · (n_attr + n_opt + [price ≤ price_upper]) / (|attrs| + |options| + 1)`.

Yao et al. 2022 (arXiv 2207.01206), as their program computes it. `r_type` compares the nouns of the two titles; which words
are nouns is told by a function from outside (nouns.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence

from rapidfuzz import fuzz, utils

from envs.webshop.products import Goal, Product

SIMILAR = 85  # of 100: a rounded token_set_ratio above this counts as the same
COLOURS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo caramel champagne"
    " charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal dark denim eggplant elephant"
    " espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon leopard light"
    " lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach"
    " pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower"
    " tan taupe teal tiger turquoise violet walnut wheat white wine yellow"
).split()


@dataclasses.dataclass(frozen=True, slots=True)
class Worth:
    """A purchase's reward in [0, 1] and its parts: matched attributes and options, the price's, and the type's factor."""

    reward: float
    attributes: int
    options: int
    price: bool
    type_factor: float


def worth(
    goal: Goal,
    product: Product,
    chosen: Collection[str],
    price: float,
    nouns: Callable[[str], Sequence[str]],
) -> Worth:
    """The reward for buying `product` with the option values `chosen` at `price` dollars."""
    matched_attributes = sum(has_attribute(product, attribute) for attribute in goal.attributes)
    matched_options = count_options(goal, chosen)
    cheap = price <= goal.price_upper
    factor = type_factor(goal, product, nouns)
    share = (matched_attributes + matched_options + cheap) / (len(goal.attributes) + len(goal.options) + 1)
    return Worth(share * factor, matched_attributes, matched_options, cheap, factor)


def has_attribute(product: Product, attribute: str) -> bool:
    """Whether a product has a goal's attribute: among its own, or word for word in its texts."""
    if any(_similar(own, attribute) for own in product.attributes):
        return True
    return attribute in product.title.lower() or attribute in " ".join(product.bullets).lower() or attribute in product.description.lower()


def count_options(goal: Goal, chosen: Collection[str]) -> int:
    """How many of the goal's options are among the values chosen.

    A chosen value is cut down to the first known colour in it ("light blue" to "blue", "titanium" to "tan"). A wanted value that
    has a name is compared with its name ("size xx large"), and is cut down only where it is nothing but a colour. That is the
    original's program, if perhaps not its intention: so "titanium" can be wanted and chosen, and still not count.
    """
    chosen = [_first_colour(value) for value in chosen]
    names = goal.option_names or (None,) * len(goal.options)
    return sum(any(_similar(value, _wanted(name, option)) for value in chosen) for name, option in zip(names, goal.options, strict=True))


def _first_colour(value: str) -> str:
    # First in the order of COLOURS, and anywhere in the value.
    return next((colour for colour in COLOURS if colour in value), value)


@functools.lru_cache(maxsize=65_536)
def _wanted(name: str | None, value: str) -> str:
    if name is None:
        return _first_colour(value)
    return next((colour for colour in COLOURS if colour in (name, value)), str((name, value)))


def _similar(one: str, other: str) -> bool:
    """Whether the share of common words, in 0 to 100 and rounded as the original's library does, is above SIMILAR."""
    return fuzz.token_set_ratio(_plain(one), _plain(other), score_cutoff=SIMILAR + 0.5) > 0


@functools.lru_cache(maxsize=65_536)
def _plain(text: str) -> str:
    """Lower case, without Latin-1's letters above ASCII, and with blanks for everything that is no letter or digit."""
    return utils.default_process(text.translate(_ABOVE_ASCII))


_ABOVE_ASCII = dict.fromkeys(range(128, 256))


def type_factor(goal: Goal, product: Product, nouns: Callable[[str], Sequence[str]]) -> float:
    """r_type: 1 for a product of the wanted kind, down to 0 where the titles share no noun."""
    wanted, bought = nouns(goal.title), nouns(product.title)
    title_score = len(set(wanted) & set(bought)) / len(wanted) if wanted else 0.2
    if title_score == 0.0:
        return 0.0
    if title_score < 0.1:
        return 0.1
    same_kind = product.query == goal.query or len(_categories(product) & _categories(goal)) >= 2 or title_score > 0.2
    return 1.0 if same_kind else 0.5


def _categories(of: Product | Goal) -> set[str]:
    return {part.strip() for part in of.product_category.split("›")}
