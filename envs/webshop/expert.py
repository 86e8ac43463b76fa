"""The expert who knows the goal's product: searches for its title, opens it, chooses the options wanted, and buys."""

from __future__ import annotations

import re

from envs.webshop import pages
from envs.webshop.engine import ShopEngine


def expert_action(engine: ShopEngine) -> str:
    """The next action from any page; "look" (which does nothing) when something was bought.

    It reaches reward 1 wherever the goal's product, with the options wanted, does. Where it does not, no other choice of options
    does either: see reward.count_options for why a wanted option may not count when it is chosen.
    """
    visit, goal = engine.visit, engine.goal
    if visit.page == "done":
        return "look"
    if visit.page == "search":
        return f"search[{_query(engine)}]"
    if visit.page == "results":
        if goal.asin in pages.shown_hits(visit):
            return f"click[{goal.asin.lower()}]"
        if goal.asin in visit.hits:
            page = 1 + visit.hits.index(goal.asin) // pages.HITS_A_PAGE
            return "click[next >]" if page > visit.number else "click[< prev]"
        return "click[back to search]"
    if visit.asin != goal.asin:
        return "click[back to search]"
    if visit.page != "item":
        return "click[< prev]"
    return _choose_or_buy(engine)


def _choose_or_buy(engine: ShopEngine) -> str:
    goal, chosen = engine.goal, engine.visit.options
    targets = pages.targets(engine.visit, engine.catalogue.product)
    for value in goal.options:
        option = targets.get(value)
        # Two wanted values may stand under one name (people's goals): the first one stays.
        if option is not None and value not in chosen.values() and chosen.get(option) not in goal.options:
            return f"click[{value}]"
    return "click[buy now]"


def _query(engine: ShopEngine) -> str:
    """Words that find the product: its title, or the title with more of its text, or its kind."""
    product = engine.catalogue.product(engine.goal.asin)
    title = _without_brackets(product.title)
    for words in (title, f"{title} {_without_brackets(product.description)}", product.query):
        words = words[:500].strip()
        if words and engine.goal.asin in engine.catalogue.search(words.lower()):
            return words
    return title or product.query


def _without_brackets(text: str) -> str:
    return re.sub(r"[\[\]\s]+", " ", text).strip()
