"""One shopping trip: pages, the reward at the till, and how far the shopper has come."""

from __future__ import annotations

from envs.webshop import pages
from envs.webshop.catalogue import Catalogue
from envs.webshop.products import Goal
from envs.webshop.reward import Worth, worth
from envs.webshop.store import StoredCatalogue

# How the search bar stands among the available actions: any words may take the place of <query>.
SEARCH = "search[<query>]"

# Progress on a results page: the goal's product is on it, or on another page of the same query.
_ON_THE_PAGE, _AMONG_THE_HITS = 0.2, 0.1
# Progress on a product's pages: this share of what buying it now would bring.
_BEFORE_THE_TILL = 0.9


class ShopEngine:
    """`reset()`, then `step(action)` until `done`. Deterministic; two engines of one catalogue share nothing that changes."""

    def __init__(self, catalogue: Catalogue | StoredCatalogue, goal: Goal) -> None:
        self.catalogue, self.goal = catalogue, goal
        self._worths: dict[tuple, Worth] = {}
        self.reset()

    def reset(self) -> str:
        """Back to the first page; returns it."""
        self.visit = pages.Visit()
        self.reward = 0.0
        return self._page()

    def step(self, action: str) -> str:
        """The page after an action ("search[words]" or "click[what]"); the same page where it does nothing."""
        before = self.visit
        self.visit = pages.follow(before, action, self.catalogue.product, self.catalogue.search)
        if self.visit.page == "done" and before.page != "done":
            self.reward = self.worth_now().reward
        return self._page()

    def _page(self) -> str:
        return pages.render(self.visit, self.goal, self.catalogue.product, self.reward)

    @property
    def done(self) -> bool:
        """Whether something was bought."""
        return self.visit.page == "done"

    def admissible_commands(self) -> list[str]:
        """What does something here, in the page's order; SEARCH stands for every query. Empty when something was bought."""
        if self.visit.page == "search":
            return [SEARCH]
        return [f"click[{name}]" for name in pages.clickables(self.visit, self.catalogue.product)]

    def worth_now(self) -> Worth:
        """What buying the product on the page, as it is chosen now, is worth."""
        visit = self.visit
        assert visit.asin is not None
        key = (visit.asin, *sorted(visit.options.items()))
        if key not in self._worths:
            product = self.catalogue.product(visit.asin)
            price = self.catalogue.prices[visit.asin]
            self._worths[key] = worth(self.goal, product, visit.options.values(), price, self.catalogue.nouns)
        return self._worths[key]

    def progress(self) -> float:
        """A potential in [0, 1] of where the shopper stands: it falls again on the way back. 1 exactly when the reward is 1."""
        visit = self.visit
        if visit.page == "done":
            return self.reward
        if visit.asin is not None:
            return _BEFORE_THE_TILL * self.worth_now().reward
        if self.goal.asin in pages.shown_hits(visit):
            return _ON_THE_PAGE
        return _AMONG_THE_HITS if self.goal.asin in visit.hits else 0.0
