"""WebShop's pages in text mode: a pure function of the visit so far and the action.

A page is a list of parts joined by " [SEP] ". A `Visit` says where the shopper is; `follow` gives the next visit, `render` its
text, `clickables` what can be clicked there. Searching is a function from outside, so that pages can be tested without it.

Left out are the original's shortcuts for developers (queries beginning with <r>, <a>, <c>, <q>), the reviews (its data has
none), and that a product's option called "attributes" opens a hidden page.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from envs.webshop.products import Goal, Product

SEPARATOR = " [SEP] "
HITS_A_PAGE = 10
# A longer action does nothing. (Lucene refuses queries of more than 1,024 terms.)
MAX_ACTION = 10_000

SUB_PAGES = ("description", "features", "reviews")


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """Where a shopper is. page: search, results, item, description, features, reviews or done.

    hits: asins of the last query's products; number: the results page, from 1; options: name -> value, as chosen for `asin`.
    """

    page: str = "search"
    query: str = ""
    hits: tuple[str, ...] = ()
    number: int = 1
    asin: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(action: str) -> tuple[str, str] | None:
    """("search", words) or ("click", what), in lower case; None if the action is neither.

    As the original: the brackets are the line's last "]" and the last "[" before it that leave something between them.
    """
    if len(action) > MAX_ACTION:
        return None
    line = action.partition("\n")[0]
    closing = line.rfind("]")
    opening = line.rfind("[", 1, max(closing - 1, 0))
    if opening < 1 or line[:opening] not in ("search", "click"):
        return None
    return line[:opening], line[opening + 1 : closing].lower()


def follow(visit: Visit, action: str, product: Callable[[str], Product], search: Callable[[str], Sequence[str]]) -> Visit:
    """The visit after an action; the same one where it does nothing. product: by asin. search: words -> asins, best first."""
    parsed = parse(action)
    if parsed is None or visit.page == "done":
        return visit
    name, argument = parsed
    if name == "search":
        # From every page, though only the first shows a search bar.
        return Visit("results", argument, tuple(search(argument)))
    here = targets(visit, product)
    if argument == "search" or argument not in here:
        return visit
    return _click(visit, argument, here[argument])


def _click(visit: Visit, name: str, option: str | None) -> Visit:
    """The visit after a click on something that is there. option: whose value `name` is, if it is one."""
    change = dataclasses.replace
    if name == "buy now":
        return change(visit, page="done")
    if name == "back to search":
        return Visit()
    if visit.page == "results" and name in ("next >", "< prev"):
        return change(visit, number=visit.number + (1 if name == "next >" else -1))
    if visit.page == "results":
        return change(visit, page="item", asin=name.upper(), options={})
    if name == "< prev" and visit.page == "item":
        return change(visit, page="results", asin=None, options={})
    if name == "< prev":
        return change(visit, page="item")
    if name in SUB_PAGES:
        return change(visit, page=name)
    if option is None:
        return visit
    return change(visit, options={**visit.options, option: name})


def targets(visit: Visit, product: Callable[[str], Product]) -> dict[str, str | None]:
    """What can be clicked, in the original's order -> the option whose value it is, if it is one."""
    if visit.page == "search":
        return {"search": None}
    if visit.page == "done":
        return {}
    found: dict[str, str | None] = {"back to search": None}
    if visit.page == "results":
        if visit.number > 1:
            found["< prev"] = None
        found["next >"] = None
        found.update((asin.lower(), None) for asin in shown_hits(visit))
        return found
    found["< prev"] = None
    if visit.page == "item" and visit.asin is not None:
        found.update(dict.fromkeys((*SUB_PAGES, "buy now")))
        for option, values in product(visit.asin).options.items():
            found.update((value, option) for value in values)
    return found


def clickables(visit: Visit, product: Callable[[str], Product]) -> list[str]:
    """What can be clicked, in lower case and in the original's order."""
    return list(targets(visit, product))


def shown_hits(visit: Visit) -> tuple[str, ...]:
    """The asins on a results page."""
    return visit.hits[(visit.number - 1) * HITS_A_PAGE : visit.number * HITS_A_PAGE]


def render(visit: Visit, goal: Goal, product: Callable[[str], Product], reward: float = 0.0) -> str:
    """The page's text. reward: shown on the last page."""
    if visit.page == "done":
        return _done_page(visit, reward)
    parts = ["Instruction:", goal.text]
    if visit.page == "search":
        return _join(["WebShop", *parts, "Search"])
    parts.append("Back to Search")
    if visit.page == "results":
        parts.append(f"Page {visit.number} (Total results: {len(visit.hits)})")
        parts += ["< Prev", "Next >"] if visit.number > 1 else ["Next >"]
        for asin in shown_hits(visit):
            parts += [asin, product(asin).title, product(asin).price_tag]
        return _join(parts)
    assert visit.asin is not None
    shown = product(visit.asin)
    parts.append("< Prev")
    if visit.page == "description":
        parts.append(shown.description)
    elif visit.page == "features":
        parts += [" " + bullet for bullet in shown.bullets]
    elif visit.page == "item":
        for option, values in shown.options.items():
            parts += [option, *values]
        parts += [shown.title, f"Price: {shown.price_tag}", "Rating: N.A."]
        parts += ["Description", "Features", "Reviews", "Buy Now"]
    return _join(parts)


def _done_page(visit: Visit, reward: float) -> str:
    # The original shows goal and details to nobody; their labels stay. Its template engine sorts and escapes the options.
    options = json.dumps(dict(visit.options), sort_keys=True)
    for character in "<>&'":
        options = options.replace(character, f"\\u{ord(character):04x}")
    parts = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    parts += ["Purchased", "asin", visit.asin or "", "options", options]
    for label in ("attrs", "category", "query", "product category"):
        parts += [label, "None"]
    parts += ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"]
    parts += ["Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details", "None"]
    return SEPARATOR.join(parts)


def _join(parts: Sequence[str]) -> str:
    """Parts as a browser's text nodes: stripped; nothing at all, or blank lines, leave no node."""
    return SEPARATOR.join(part.strip() for part in parts if part and not (part.strip(" \t\n\f\r") == "" and "\n" in part))
