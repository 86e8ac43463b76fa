"""The shopper: an expert that knows only what the pages have shown.

It searches with the instruction's own words, opens the hit whose title says most of them within the price, leaves it for the next
one if an option that is asked for is missing, chooses the options, and buys. Reading features too was tried and did not pay: the trip
is short, and they seldom name what the title leaves open. Somebody else may carry out other actions than it asked for: it takes the
page as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from envs.webshop.pages import SEPARATOR

# Trips are short: so many products are left again.
MAX_LEFT = 2
# How many wanted words in a title make up for one place further down the list: after the shopper's own query, and after another's.
_RANK_WEIGHT, _RANK_WEIGHT_ELSEWHERE = 2.0, 0.2
_MAX_QUERY_WORDS = 14

_PRICE = re.compile(r",?\s*(?:and )?price (?:lower|less) than (\d+(?:\.\d+)?) dollars|(?:under|below|less than|lower than) \$?(\d+(?:\.\d+)?)")
_OPTION = re.compile(r"(?: with|, and) ([a-z][a-z .]{0,30}?): ")
_WORD = re.compile(r"[a-z0-9][a-z0-9.'-]*[a-z0-9]|[a-z0-9]")
_DOLLARS = re.compile(r"\$(\d+(?:\.\d+)?)")
_FILLERS = frozenset(
    "find me i am i'm im looking look for a an the and with of in on to that is are be it its my want would like need some please get buy"
    " can you show which has have made from or by as at also should dollars than price lower less interested".split()
)
_BUTTONS = frozenset(("back to search", "< prev", "next >", "description", "features", "reviews", "buy now"))


@dataclasses.dataclass(frozen=True)
class Wish:
    """What an instruction asks for. words: of the thing itself; kind: the last two of its first part, what the thing is called;
    options: name -> value where the instruction names them; limit: dollars."""

    text: str
    words: tuple[str, ...]
    kind: tuple[str, ...]
    options: dict[str, str]
    limit: float

    @property
    def query(self) -> tuple[str, ...]:
        """What to search for: options too, since a shop's search engine knows what a product comes in."""
        return tuple(dict.fromkeys((*self.words, *_WORD.findall(" ".join(self.options.values())))))


def read_instruction(text: str) -> Wish:
    """The wish in an instruction of any wording."""
    lowered = text.lower().strip()
    price = _PRICE.search(lowered)
    limit = float(price[1] or price[2]) if price else float("inf")
    bare = _PRICE.sub("", lowered)
    marks = list(_OPTION.finditer(bare))
    options = {}
    for mark, following in zip(marks, [*marks[1:], None]):
        options[mark[1]] = bare[mark.end() : following.start() if following else None].strip(" ,.")
    head = bare[: marks[0].start()] if marks else bare
    words = tuple(dict.fromkeys(word for word in _WORD.findall(head) if word not in _FILLERS))
    first_part = re.split(r" (?:with|for|that|which) ", head.removeprefix("find me ").removeprefix("i am looking for "))[0]
    kind = tuple(word for word in _WORD.findall(first_part) if word not in _FILLERS)[-2:]
    return Wish(text, words[:_MAX_QUERY_WORDS], kind or words[-2:], options, limit)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do next and why. purpose: search, open, choose, buy, leave (a product), return (to it), restart or wait.

    thing: the query, the product's id, or the value; name: its kind, its title, or the option's name; place: its place among the hits, from 1.
    """

    action: str
    purpose: str
    thing: str = ""
    name: str = ""
    place: int = 0


class Shopper:
    """`reset(observation)`, then `act(admissible)` and `observe(observation)` in turn; `decision` tells why."""

    def reset(self, observation: str) -> None:
        """Begins a trip with its first page."""
        self.page = observation.split(SEPARATOR)
        self.results: list[str] = []  # the page of hits, and the product's page, as last seen in full
        self.product: list[str] = []
        self.wish = read_instruction(self._instruction())
        self.open: str | None = None  # the product whose pages are shown
        self.left: list[str] = []
        self.chosen: set[str] = set()
        self.titles: dict[str, str] = {}
        self.clickable: list[str] = []
        self.own_query = False  # whether the hits are those of the shopper's own query
        self.searched = False  # whether that query was ever typed
        self.decision = Decision("look", "wait")

    def _instruction(self) -> str:
        place = self.page.index("Instruction:") if "Instruction:" in self.page else -1
        return self.page[place + 1] if 0 <= place < len(self.page) - 1 else ""

    def observe(self, observation: str, action: str) -> None:
        """Takes in the page that followed `action`, which need not be the one asked for."""
        if self.decision.purpose == "leave" and action == self.decision.action:
            self.left.append(self.decision.thing)
        self._see(observation)
        clicked = action.removeprefix("click[").removesuffix("]") if action.startswith("click[") else ""
        if action.startswith("search["):
            self.open = None
            self.own_query = action == f"search[{' '.join(self.wish.query)}]"
            self.searched |= self.own_query
        elif clicked not in self.clickable:
            return  # it did nothing
        elif clicked == "back to search" or self.page is self.results:
            self.open = None
        elif clicked in self.titles:
            self.open, self.chosen = clicked, set()
        elif clicked not in _BUTTONS:
            for group in self._groups(self.clickable).values():
                if clicked in group:  # one value of an option takes another's place
                    self.chosen.difference_update(group)
            self.chosen.add(clicked)

    def _see(self, observation: str) -> None:
        """Keeps a page; a brief word about an action does not take the place of the page it was done on."""
        self.page = observation.split(SEPARATOR)
        if any(part.startswith("Page ") and "Total results" in part for part in self.page[:4]):
            if self.page == self.results[:1]:
                self.page = self.results  # a brief page of hits that were listed before
            self.results = self.page
        elif any(part.startswith("Price: ") for part in self.page):
            self.product = self.page

    def _missing(self, text: str) -> set[str]:
        shown = {_bare(word) for word in _WORD.findall(text.lower())}
        return {word for word in self.wish.words if _bare(word) not in shown}

    def act(self, admissible: Sequence[str]) -> str:
        """The next action on the page just seen, given what can be clicked on it."""
        self.clickable = [command[6:-1] for command in admissible if command.startswith("click[")]
        self.decision = self._decide(self.clickable, admissible)
        return self.decision.action

    def _decide(self, clickable: list[str], admissible: Sequence[str]) -> Decision:
        if any(command.startswith("search[") for command in admissible):
            # A query that found nothing that fits is made shorter.
            query = " ".join(self.wish.kind if self.searched else self.wish.query)
            return Decision(f"search[{query}]", "search", query, " ".join(self.wish.kind))
        if "next >" in clickable:
            return self._open_best([name for name in clickable if name not in _BUTTONS])
        if "buy now" in clickable:
            return self._on_product([name for name in clickable if name not in _BUTTONS])
        if "< prev" in clickable:
            return Decision("click[< prev]", "return", self.open or "", self.titles.get(self.open or "", ""))
        return Decision("look", "wait")

    def _open_best(self, hits: list[str]) -> Decision:
        best: tuple[float, int] | None = None
        for place, asin in enumerate(hits):
            title, price = self._title_and_price(asin)
            self.titles[asin] = title
            missing = self._missing(title)
            score = len(self.wish.words) - len(missing) + sum(word not in missing for word in self.wish.kind)
            score -= 4 if price > self.wish.limit else 0
            score -= 100 if asin in self.left else 0
            score -= (_RANK_WEIGHT if self.own_query else _RANK_WEIGHT_ELSEWHERE) * place
            if best is None or score > best[0]:
                best = (score, place)
        if best is None:
            return Decision("click[back to search]", "restart")
        asin = hits[best[1]]
        if self.wish.kind and not self.searched and self._missing(self.titles[asin]).issuperset(self.wish.kind):
            # Somebody else's query, and nothing of the kind.
            return Decision("click[back to search]", "restart")
        return Decision(f"click[{asin}]", "open", asin, self.titles[asin], best[1] + 1)

    def _title_and_price(self, asin: str) -> tuple[str, float]:
        place = self.results.index(asin.upper()) if asin.upper() in self.results else len(self.results)
        title, tag = (*self.results[place + 1 : place + 3], "", "")[:2]
        prices = _DOLLARS.findall(tag)
        return title, float(prices[0]) if prices else 0.0

    def _on_product(self, values: list[str]) -> Decision:
        asin = self.open or ""
        title = self.titles.get(asin, "")
        wanted = self._wanted(values)
        may_leave = len(self.left) < MAX_LEFT and len(self.titles) > 1 + len(self.left) and asin in self.titles
        if may_leave and len(wanted) < len(self.wish.options):
            return Decision("click[< prev]", "leave", asin, title)
        for name, value in wanted.items():
            if value not in self.chosen:
                return Decision(f"click[{value}]", "choose", value, name)
        return Decision("click[buy now]", "buy", asin, title)

    def _wanted(self, values: list[str]) -> dict[str, str]:
        """Option name -> the value on this page that is asked for, where there is one."""
        if self.wish.options:
            found = {}
            for name, value in self.wish.options.items():
                match = value if value in values else next((other for other in values if value and value in other), None)
                if match is not None:
                    found[name] = match
            return found
        # A person's words: of each option, the longest value that stands in them.
        words = f" {' '.join(_WORD.findall(self.wish.text.lower()))} "
        found = {}
        for name, group in self._groups(values).items():
            said = [value for value in group if f" {' '.join(_WORD.findall(value))} " in words and _WORD.search(value)]
            if said:
                found[name] = max(said, key=len)
        return found

    def _groups(self, values: list[str]) -> dict[str, list[str]]:
        """Option name -> values: on the page each name, which cannot be clicked, stands before its values."""
        groups: dict[str, list[str]] = {}
        name = ""
        for part in self.product:
            if part.startswith("Price: "):
                break
            if part in values:
                groups.setdefault(name, []).append(part)
            else:
                name = part
        return groups


def _bare(word: str) -> str:
    """A word without the endings that titles and instructions use differently."""
    return word.removesuffix("'s").removesuffix("s")
