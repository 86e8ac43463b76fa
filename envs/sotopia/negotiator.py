"""Scripted negotiators: the embedded LLM_d of a seat. They see their seat's view, are given a strategy in words, and make the next move.

A negotiator measures every deal by its own share (bargaining.Side.share: 1 is its dream, 0 no better than none). In its turn it makes up its
mind about the deal to say, and says "I accept." instead if the other's offer is at least as good to it. The deal is

- as the words want it, where they say something (advice.py). The level is the share to ask for, counted from its own last offer (1 if there was
  none): *high* and *hold* stay there (*hold* opens at HOLD_OPENING), *little* goes down by LITTLE_STEP, *concede* by CONCEDE_STEP, *halfway* to the
  middle between it and the other's offer. Options that are wanted are in the deal, or it is what was last offered but for the issues kept and given;
  *trade* takes, of deals that are about as good, the nearest to the other's. A deal that is no better than none is never said, nor accepted,
  whatever the words say. *accept* with a wanted option accepts only what is as good as that; with nothing to accept it goes halfway. At its last
  turn an advised negotiator does what it is told: holding then means no deal.
- else by its temper. `plain`, the default: opens at PLAIN_OPENING, then always meets the other halfway, and takes whatever is better than nothing in
  its last turn. The others are partners: `eager` gives way early, `steady` evenly, `stubborn` late, `mirror` as much as it is given, `impatient`
  evenly, but it leaves when three offers in a row brought it nothing. They look for the deal nearest to the other's, end at their pride (PRIDE, the
  share below which they would rather have no deal), vary a little by seed, say what matters most if they are asked, and press on a limit that was
  revealed to them.

It never says its limit unless the words tell it to ("reveal your limit"), and never offers a deal that is worth only that. Choosing is a pure
function of (strategy, view): nothing is remembered that is not in the view's history. In a conversation without a game it talks (talker.py).

What words are worth, as mean goal scores of 204 games of `generated:eval` against tempered partners: 3.0 without any, 0.3 "hold firm", 2.3 "meet
halfway", 3.7 "concede", 4.9 "concede slowly" with "accept their offer" in the last turn, 1.3 random words of advice, 6.0 the expert's precise words.
"""

from __future__ import annotations

import dataclasses
import random

from envs.sotopia import advice as words
from envs.sotopia import talker
from envs.sotopia.action import LEAVE, SPEAK, Action
from envs.sotopia.advice import Advice
from envs.sotopia.agreement import QUESTION, Ledger, read
from envs.sotopia.bargaining import Deal, Side, spoken
from envs.sotopia.scenario import View

HOLD_OPENING, LITTLE_STEP, CONCEDE_STEP = 0.95, 0.07, 0.2
PLAIN_OPENING = 0.75
PRIDE = {"plain": 0.0, "eager": 0.08, "steady": 0.12, "stubborn": 0.2, "mirror": 0.15, "impatient": 0.12}
# Of the partners that give way with time: aspiration falls from 1 to pride as elapsed ** exponent.
_EXPONENT = {"eager": 0.6, "steady": 1.0, "stubborn": 2.5, "impatient": 1.0}
_NEAR = 0.12  # two deals are about as good if their shares differ by no more
_PATIENCE = 3


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a negotiator stands: its own last offer, the other's standing and earlier ones, and how far the time has run."""

    side: Side
    ledger: Ledger
    seat: int
    own: Deal | None
    theirs: Deal | None
    elapsed: float  # 0 at its first turn, 1 at its last

    @property
    def own_share(self) -> float:
        return self.side.share(self.own) if self.own is not None else 1.0

    @property
    def their_share(self) -> float:
        """What the other's standing offer is worth; 0 without one."""
        return max(0.0, self.side.share(self.theirs)) if self.theirs is not None else 0.0

    @property
    def last_turn(self) -> bool:
        return self.elapsed >= 1


class Negotiator:
    """Chooses the actions of a seat. temper: of PRIDE; seed: only varies how partners concede."""

    def __init__(self, temper: str = "plain", seed: int = 0) -> None:
        if temper not in PRIDE:
            raise ValueError(f"there is no temper {temper!r}: use one of {', '.join(PRIDE)}")
        self.temper = temper
        self.seed = seed

    def choose(self, strategy: str | None, view: View) -> Action:
        """The next action of the view's seat. strategy: the strategist's words; None or "" where nobody advises. Never raises on any text."""
        if view.side is None:
            return talker.choose(strategy, view, self.seed)
        position = position_of(view)
        advice = words.read(strategy, view.side.issues) if strategy else Advice()
        if words.REVEAL in advice.moves:
            return Action(SPEAK, _revealed(view.side))
        if words.LEAVE in advice.moves:
            return Action(LEAVE)
        accepts = position.theirs is not None and position.their_share > 1e-9
        if words.ACCEPT in advice.moves and accepts and not advice.wanted:
            return Action(SPEAK, "I accept.")
        if words.ASK in advice.moves:
            return Action(SPEAK, QUESTION)
        deal = _advised(advice, position) if advice else None
        if deal is None:
            if self._loses_patience(position):
                return Action(LEAVE)
            if accepts and position.last_turn and position.their_share >= PRIDE[self.temper]:
                return Action(SPEAK, "I accept.")
            deal = self._by_temper(position)
        if accepts and position.their_share >= position.side.share(deal) - 1e-9:
            return Action(SPEAK, "I accept.")
        answer = ""
        if position.ledger.asked[1 - view.seat]:
            answer = f"The {position.side.issues[_what_matters(position.side)].name} matters most to me. "
        return Action(SPEAK, f"{answer}I offer {spoken(view.side.issues, deal)}.")

    def _by_temper(self, position: Position) -> Deal:
        if self.temper == "plain":
            middle = (position.own_share + position.their_share) / 2
            return deal_worth(position, PLAIN_OPENING if position.own is None else middle)
        pride = PRIDE[self.temper]
        if self.temper == "mirror":
            level = self._mirrored(position)
        else:
            level = 1 - (1 - pride) * position.elapsed ** _EXPONENT[self.temper]
        # Only to vary what partners of one temper do; what they have offered once they do not take back.
        level -= 0.04 * random.Random(f"{self.seed}/{len(position.ledger.offers[position.seat])}").random()
        level = min(position.own_share, max(pride, level))
        limit = position.ledger.limit[1 - position.seat]
        if limit is not None:
            level = max(level, 0.9 * position.side.share((limit,)))
        return deal_worth(position, level, near=True)

    def _mirrored(self, position: Position) -> float:
        """The share after giving back what the other's last step gave."""
        theirs = [position.side.share(deal) for deal in position.ledger.offers[1 - position.seat]]
        if position.own is None:
            return 0.95
        given = theirs[-1] - theirs[-2] if len(theirs) > 1 else 0.05
        return position.own_share - min(0.25, max(0.02, given)) - (0.1 if position.last_turn else 0.0)

    def _loses_patience(self, position: Position) -> bool:
        """Whether the other's last offers, one after another, brought an impatient partner nothing."""
        theirs = [position.side.share(deal) for deal in position.ledger.offers[1 - position.seat]]
        return self.temper == "impatient" and len(theirs) >= _PATIENCE and theirs[-1] <= theirs[-_PATIENCE] + 1e-9


def position_of(view: View) -> Position:
    """Where a seat stands in its game."""
    ledger = read(view.side.issues, view.history)
    own, theirs = ledger.offers[view.seat], ledger.standing[1 - view.seat]
    first = view.seat
    last = first + 2 * ((view.max_turns - 1 - first) // 2)
    elapsed = min(1.0, max(0.0, (view.turn - first) / (last - first))) if last > first else 1.0
    return Position(view.side, ledger, view.seat, own[-1] if own else None, theirs, elapsed)


def _advised(advice: Advice, position: Position) -> Deal | None:
    """The deal that the words ask for; None where they ask for none that is better than no deal."""
    side = position.side
    fixed = dict(advice.wanted)
    for issue in advice.keep:
        fixed[issue] = max(range(len(side.points[issue])), key=side.points[issue].__getitem__)
    for issue in advice.give:
        worst = min(range(len(side.points[issue])), key=side.points[issue].__getitem__)
        fixed[issue] = position.theirs[issue] if position.theirs is not None else worst
    trade = words.TRADE in advice.moves
    level = _level(advice, position)
    if fixed:
        base = position.own or side.ranked[0][1]
        if level is None and not trade:
            deal = tuple(fixed.get(issue, option) for issue, option in enumerate(base))
            return deal if side.share(deal) > 1e-9 else None
        return deal_worth(position, position.own_share if level is None else level, near=trade, fixed=fixed)
    if level is None:
        return deal_worth(position, position.own_share - LITTLE_STEP, near=True) if trade else None
    if position.own is not None and advice.level in (words.HIGH, words.HOLD) and not trade:
        return position.own
    return deal_worth(position, level, near=trade)


def _level(advice: Advice, position: Position) -> float | None:
    own = position.own_share
    if advice.level == words.HIGH:
        return own
    if advice.level == words.HOLD:
        return own if position.own is not None else HOLD_OPENING
    if advice.level == words.LITTLE:
        return own - LITTLE_STEP
    if advice.level == words.CONCEDE:
        return own - CONCEDE_STEP
    if advice.level == words.HALFWAY or (words.ACCEPT in advice.moves and not advice.wanted):
        return (own + position.their_share) / 2
    return None


def deal_worth(position: Position, level: float, *, near: bool = False, fixed: dict[int, int] | None = None) -> Deal | None:
    """The least deal that is worth `level`; with `near`, of those worth little more, the nearest to the other's offer.

    fixed: issue -> option it must have. None if no deal that is better than none has these.
    """
    side, best = position.side, None
    chosen: tuple[tuple[float, float], Deal] | None = None
    for share, deal in side.ranked:
        if fixed and any(deal[issue] != option for issue, option in fixed.items()):
            continue
        if best is None:
            best = (share, deal)
        if share < level - 1e-9:
            break
        if not near or position.theirs is None:
            chosen = ((0.0, -share), deal) if chosen is None or share < -chosen[0][1] - 1e-9 else chosen
            continue
        if share > max(level, 1e-9) + _NEAR and share < best[0]:
            continue
        rank = (_nearness(position, deal), -share)
        if chosen is None or rank > chosen[0]:
            chosen = (rank, deal)
    return chosen[1] if chosen else best and best[1]


def _nearness(position: Position, deal: Deal) -> float:
    """How near a deal comes to what the other last asked for, issue by issue; what matters most to it counts three times."""
    cares = position.ledger.cares[1 - position.seat]
    return sum(
        (3.0 if issue == cares else 1.0) * (1 - abs(option - wanted) / max(1, len(position.side.issues[issue].options) - 1))
        for issue, (option, wanted) in enumerate(zip(deal, position.theirs, strict=True))
    )


def _what_matters(side: Side) -> int:
    return max(range(len(side.points)), key=lambda issue: max(side.points[issue]) - min(side.points[issue]))


def _revealed(side: Side) -> str:
    return f"My limit is price {side.price_limit}." if side.price_limit is not None else f"My limit is {side.reserve:g} points."
