"""Bargaining games: issues with options, what each option is worth to each seat, and the exact score of a deal.

A deal names one option of every issue. To seat s it is worth w_s(d), the sum of the options' points, and having no deal is worth r_s (its
reservation value). Both are the seat's private knowledge. With M_s the most that s could have in any deal that is worth at least r_o to the
other seat o, the goal score of seat s is

    goal_s(d) = 10 · clip((w_s(d) − r_s) / (M_s − r_s), 0, 1)        and 0 without a deal.

So 10 is all that there was to gain at the other's expense, and in a pure price game goal_0 + goal_1 = 10 within the zone of agreement: each
seat's share of the surplus. Where issues matter differently to the two, a good trade gives both more than 5.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

Deal = tuple[int, ...]  # the option's number in every issue


@dataclasses.dataclass(frozen=True)
class Issue:
    """What is bargained over. name: one lower-case word; options: one or two lower-case words each, as they are said ("$45", "friday")."""

    name: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Side:
    """One seat's private half of a game. points: of every option of every issue; reserve: what having no deal is worth."""

    issues: tuple[Issue, ...]
    points: tuple[tuple[float, ...], ...]
    reserve: float

    def worth(self, deal: Deal) -> float:
        return sum(points[option] for points, option in zip(self.points, deal, strict=True))

    def share(self, deal: Deal) -> float:
        """How good a deal is on the seat's own scale: 1 is the best there is, 0 no better than none (less than 0: worse)."""
        return (self.worth(deal) - self.reserve) / (self.best - self.reserve)

    @functools.cached_property
    def best(self) -> float:
        return sum(map(max, self.points))

    @functools.cached_property
    def ranked(self) -> tuple[tuple[float, Deal], ...]:
        """(share, deal) of every deal that is better than none, the best first."""
        deals = itertools.product(*(range(len(issue.options)) for issue in self.issues))
        return tuple(sorted(((share, deal) for deal in deals if (share := self.share(deal)) > 1e-9), key=lambda pair: (-pair[0], pair[1])))

    @functools.cached_property
    def price_limit(self) -> str | None:
        """In a game over a price alone, the last option that is no worse than no deal; else None."""
        if len(self.issues) != 1:
            return None
        points = self.points[0]
        acceptable = [option for option, worth in enumerate(points) if worth >= self.reserve]
        return self.issues[0].options[min(acceptable, key=lambda option: points[option])]


@dataclasses.dataclass(frozen=True)
class Game:
    """Both halves. Only the environment sees it whole."""

    issues: tuple[Issue, ...]
    sides: tuple[Side, Side]

    @functools.cached_property
    def most(self) -> tuple[float, float]:
        """M_s of both seats: the most each can have if the other is no worse off than without a deal. The reserve if there is no such deal."""
        deals = list(itertools.product(*(range(len(issue.options)) for issue in self.issues)))
        first, second = self.sides
        return (
            max((first.worth(deal) for deal in deals if second.worth(deal) >= second.reserve), default=first.reserve),
            max((second.worth(deal) for deal in deals if first.worth(deal) >= first.reserve), default=second.reserve),
        )

    def share(self, seat: int, deal: Deal | None) -> float:
        """The seat's score of a deal in [0, 1]: goal / 10."""
        side, most = self.sides[seat], self.most[seat]
        if deal is None or most <= side.reserve:
            return 0.0
        return min(1.0, max(0.0, (side.worth(deal) - side.reserve) / (most - side.reserve)))

    def goal(self, seat: int, deal: Deal | None) -> float:
        """The seat's goal score of a deal in [0, 10], by the formula at the top of this file."""
        return 10.0 * self.share(seat, deal)


def spoken(issues: tuple[Issue, ...], deal: Deal) -> str:
    """A deal in words: "price $45, delivery friday"."""
    return ", ".join(f"{issue.name} {issue.options[option]}" for issue, option in zip(issues, deal, strict=True))
