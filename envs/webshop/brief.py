"""Pages for small models: what the conversation already holds is left out.

The original repeats the instruction and every button's name on each page, so that a page can be read alone. A strategist reads the whole
trip, and a small one has little room: here the instruction stands on the first page only, buttons are not listed, a page of hits that
one returns to has only its heading, a choice is answered with the choice, and an action that does nothing with a few words. Nothing else
is left out.
"""

from __future__ import annotations

from envs.webshop import pages
from envs.webshop.pages import SEPARATOR, Visit

NOTHING = "Nothing happens."

def shorten(before: Visit, after: Visit, page: str, reward: float) -> str:
    """What is said of the step from one visit to the next, given the page in full."""
    if after == before:
        return NOTHING
    if after.page == "done":
        return f"Thank you for shopping with us!{SEPARATOR}Your score: {reward:.2f}"
    if after.page == "search":
        return "Search"
    if after.page == before.page == "item" and after.asin == before.asin:
        return SEPARATOR.join(f"{name}: {value}" for name, value in after.options.items())
    parts = page.split(SEPARATOR)[2:]  # behind "Instruction:" and the instruction
    if after.page == "results":
        heading = [f"Page {after.number} (Total results: {len(after.hits)})"]
        if before.page == "item" and (before.query, before.number) == (after.query, after.number):
            return heading[0]  # back at the hits that the product was opened from
        return SEPARATOR.join(heading + parts[parts.index(heading[0]) + (3 if after.number > 1 else 2) :])
    parts = parts[2:]
    return SEPARATOR.join(parts[: -len(pages.SUB_PAGES) - 1] if after.page == "item" else parts)
