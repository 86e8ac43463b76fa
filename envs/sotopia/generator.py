"""Games of the embedded set from a number: who plays, what each option is worth to whom, how many turns there are. All drawn by a seed.

No game stands in both `generated:train` and `generated:eval`: a game belongs to one of them by a digest of what was drawn. Every game has a
zone of agreement, in which both seats gain something worth having.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random

from envs.sotopia.bargaining import Game, Issue, Side
from envs.sotopia.bargains import BARGAINS, Bargain
from envs.sotopia.cast import CHARACTERS, TEMPERS
from envs.sotopia.conversations import CONVERSATIONS
from envs.sotopia.scenario import Combination, Scenario

TRAIN, EVALUATION, SCENARIOS = SPLITS = ("generated:train", "generated:eval", "generated:scenarios")
MAX_NUMBER = 1_000_000
RULE = "A deal is made when one says"  # how the sentences begin that tell the rule of agreement.py

_TURNS = (8, 10, 12, 14)
_EVALUATION_EVERY = 5
_FAIR_SHARE = 0.3  # on both seats' own scales, in at least one deal of a points game


@functools.lru_cache(maxsize=4096)
def generate(split: str, number: int) -> Combination:
    """Game `number` of `generated:train` or `generated:eval`: the scenarios in turn, everything else by the seed."""
    if split not in (TRAIN, EVALUATION) or not 0 <= number < MAX_NUMBER:
        raise ValueError(f"{split}/{number}")
    bargain = BARGAINS[number % len(BARGAINS)]
    rng = random.Random(f"{split}/{number}")
    while True:
        game = _price_game(bargain, rng) if bargain.price else _points_game(bargain, rng)
        people = rng.sample(CHARACTERS, 2)
        turns = rng.choice(_TURNS)
        drawn = repr((bargain.codename, game.sides[0].points, game.sides[1].points, game.sides[0].reserve, game.sides[1].reserve, turns))
        evaluates = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4], "big") % _EVALUATION_EVERY == 0
        if evaluates == (split == EVALUATION):
            break
    scenario = Scenario(
        id=bargain.codename,
        codename=bargain.codename,
        kind=bargain.kind,
        text=_named(bargain.text, people) + _rule(game, turns),
        goals=tuple(f"{want} {_private(side)}" for want, side in zip(bargain.wants, game.sides, strict=True)),
        relationship=bargain.relationship,
        game=game,
        max_turns=turns,
    )
    return Combination(f"{split}/{number}", scenario, tuple(people), tuple(TEMPERS[who.id] for who in people), rng.randrange(2**31))


@functools.cache
def scenarios() -> tuple[Combination, ...]:
    """One of each of the embedded scenarios: the bargaining games first, then those that are only talk."""
    games = [generate(EVALUATION, number) for number in range(len(BARGAINS))]
    talks = []
    for place, scenario in enumerate(CONVERSATIONS):
        rng = random.Random(f"{SCENARIOS}/{scenario.codename}")
        people = rng.sample(CHARACTERS, 2)
        told = dataclasses.replace(scenario, text=_named(scenario.text, people))
        tempers = tuple(TEMPERS[who.id] for who in people)
        talks.append(Combination(f"{SCENARIOS}/{len(games) + place}", told, tuple(people), tempers, rng.randrange(2**31)))
    return (*(dataclasses.replace(game, id=f"{SCENARIOS}/{place}") for place, game in enumerate(games)), *talks)


def _named(text: str, people: list) -> str:
    return text.replace("{a}", people[0].first_name).replace("{b}", people[1].first_name)


def _rule(game: Game, turns: int) -> str:
    """The rule of agreement, as both are told it."""
    issues = "; ".join(f"{issue.name}: {_options(issue)}" for issue in game.issues)
    example = ", ".join(f"{issue.name} {issue.options[len(issue.options) // 2]}" for issue in game.issues)
    return (
        f' {RULE} "I offer" and names every issue in one sentence, as in "I offer {example}.", and the other answers "I accept."'
        f" Issues: {issues}. There are {turns} turns in all; without a deal neither gains anything."
    )


def _options(issue: Issue) -> str:
    if len(issue.options) > 12:
        step = int(issue.options[1].strip("$")) - int(issue.options[0].strip("$"))
        return f"{issue.options[0]} to {issue.options[-1]} in steps of ${step}"
    return ", ".join(issue.options)


def _private(side: Side) -> str:
    """A seat's points or limit in words, for that seat alone."""
    if side.price_limit is not None:
        rising = side.points[0][-1] > side.points[0][0]
        return f"Your limit is {side.price_limit}: no deal is as good as that, and every dollar {'above' if rising else 'below'} it is gain."
    tables = "; ".join(
        f"{issue.name}: {', '.join(f'{option} {points:g}' for option, points in zip(issue.options, row, strict=True))}"
        for issue, row in zip(side.issues, side.points, strict=True)
    )
    return f"Your points: {tables}. No deal is as good to you as {side.reserve:g} points."


def _price_game(bargain: Bargain, rng: random.Random) -> Game:
    """A price between two limits. Both know the range that is talked about, which tells little of either limit."""
    usual, step = bargain.price
    cost = round(usual * rng.uniform(0.7, 1.2) / step)
    value = cost + max(5, round(usual * rng.uniform(0.3, 0.9) / step))
    low = max(1, cost - round(usual * rng.uniform(0.15, 0.5) / step))
    high = value + round(usual * rng.uniform(0.15, 0.5) / step)
    prices = [step * number for number in range(low, high + 1)]
    issues = (Issue("price", tuple(f"${price}" for price in prices)),)
    selling = Side(issues, (tuple(map(float, prices)),), float(cost * step))
    buying = Side(issues, (tuple(-float(price) for price in prices),), -float(value * step))
    return Game(issues, (selling, buying) if bargain.seller == 0 else (buying, selling))


def _points_game(bargain: Bargain, rng: random.Random) -> Game:
    """Points that rise or fall evenly along each issue. What matters to one seat may hardly matter to the other."""
    issues = tuple(Issue(planned.name, planned.options) for planned in bargain.issues)
    while True:
        sides = []
        for seat in (0, 1):
            weights = rng.sample(range(2, 21), len(issues))
            points = []
            for planned, weight in zip(bargain.issues, weights, strict=True):
                row = [float(round(weight * place / (len(planned.options) - 1))) for place in range(len(planned.options))]
                points.append(tuple(row if planned.up in (seat, None) else row[::-1]))
            reserve = round(sum(weights) * rng.uniform(0.2, 0.45))
            sides.append(Side(issues, tuple(points), float(reserve)))
        second = dict(map(reversed, sides[1].ranked))
        if any(share >= _FAIR_SHARE and second.get(deal, 0) >= _FAIR_SHARE for share, deal in sides[0].ranked):
            return Game(issues, tuple(sides))
