"""The score of a deal against the formula worked by hand, and its properties on generated games."""

from __future__ import annotations

import itertools

import pytest

from envs.sotopia import generator
from envs.sotopia.bargaining import Game, Issue, Side

PRICE = (Issue("price", tuple(f"${price}" for price in range(30, 91, 10))),)


def sale(cost: float, value: float) -> Game:
    """Seat 0 sells."""
    prices = tuple(float(price) for price in range(30, 91, 10))
    return Game(PRICE, (Side(PRICE, (prices,), cost), Side(PRICE, (tuple(-price for price in prices),), -value)))


@pytest.mark.parametrize(("price", "seller", "buyer"), [(40, 0, 10), (50, 2.5, 7.5), (60, 5, 5), (80, 10, 0), (30, 0, 10), (90, 10, 0)])
def test_a_price_between_two_limits(price, seller, buyer):
    """From 40 to 80 the two shares of the surplus of 40 add up to 10; outside, one seat has nothing."""
    deal = ((price - 30) // 10,)
    assert [sale(40, 80).goal(seat, deal) for seat in (0, 1)] == pytest.approx([seller, buyer])


def test_no_deal_and_no_zone():
    assert sale(40, 80).goal(0, None) == 0 == sale(40, 80).goal(1, None)
    assert [sale(80, 40).goal(seat, (3,)) for seat in (0, 1)] == [0, 0]


def test_a_good_trade_gives_both_more_than_half():
    """Two issues, each of which matters to one seat: 8 and 2 points; both need 4."""
    issues = (Issue("day", ("early", "late")), Issue("place", ("here", "there")))
    game = Game(issues, (Side(issues, ((0.0, 8.0), (0.0, 2.0)), 4.0), Side(issues, ((2.0, 0.0), (8.0, 0.0)), 4.0)))
    trade = (1, 0)  # late and here: 8 points to each, of which 4 are gain
    # Seat 0 can have at most 8: with the second issue, too, the other has 0 and would rather have no deal.
    assert game.most == (8.0, 8.0)
    assert [game.goal(seat, trade) for seat in (0, 1)] == [10, 10]
    assert [game.goal(seat, (0, 1)) for seat in (0, 1)] == [0, 0]


def test_properties_on_generated_games():
    """Scores lie in [0, 10], grow with worth, are 10 for somebody at the most that it can have, and a limit is not in a price's zone."""
    for number in range(51):
        game = generator.generate(generator.TRAIN, number).scenario.game
        deals = list(itertools.product(*(range(len(issue.options)) for issue in game.issues)))
        for seat, side in enumerate(game.sides):
            other = game.sides[1 - seat]
            goals = {deal: game.goal(seat, deal) for deal in deals}
            assert all(0 <= goal <= 10 for goal in goals.values())
            ordered = sorted(deals, key=side.worth)
            assert all(goals[a] <= goals[b] for a, b in itertools.pairwise(ordered))
            fair = [deal for deal in deals if other.worth(deal) >= other.reserve]
            assert max(goals[deal] for deal in fair) == 10
            assert {deal for _, deal in side.ranked} == {deal for deal in deals if side.worth(deal) > side.reserve}
            shares = [share for share, _ in side.ranked]
            assert shares == sorted(shares, reverse=True) and 0 < shares[-1] and shares[0] == 1
            if len(game.issues) == 1:
                assert side.worth((game.issues[0].options.index(side.price_limit),)) == side.reserve
                for deal in deals:
                    if all(s.worth(deal) >= s.reserve for s in game.sides):
                        assert goals[deal] + game.goal(1 - seat, deal) == pytest.approx(10)
