"""The expert: how a good strategist would have a seat bargain, from that seat's view alone.

It asks for nearly everything first and gives way late: the share it wants falls from OPENING to CLOSING as the time runs, slowly at first. Of
deals that are as good to it, it wants the one nearest to what the other asks for, which is how both gain where issues matter differently. It moves at
least a little each time, since some partners leave where nothing moves, takes an offer as good as what it would ask for next, and in its last turn
any offer that is better than none. In a conversation it answers what it need not keep, asks for what it wishes to learn, tells what it wishes to
tell, and then listens.
"""

from __future__ import annotations

import dataclasses

from envs.sotopia.bargaining import Deal, spoken
from envs.sotopia.negotiator import Position, deal_worth, position_of
from envs.sotopia.scenario import View
from envs.sotopia.talker import asked_in
from envs.sotopia.topics import KEEP, LEARN, TELL, fulfilled

OPENING, CLOSING, EXPONENT = 0.95, 0.3, 1.8
LEAST_STEP = 0.02
ENOUGH = 0.9  # of the share that would be asked for next


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do next. purpose: "open", "give", "hold" or "accept" in a game; "ask", "tell" or "listen" elsewhere.

    deal: what to offer, in words; point: the part of it that is new (or that matters most); topic: what to ask for or to tell.
    """

    purpose: str
    deal: str = ""
    point: str = ""
    topic: str = ""


def decide(view: View) -> Decision:
    """What the expert would have the view's seat do now."""
    if view.side is None:
        return _talk(view)
    position = position_of(view)
    level = OPENING - (OPENING - CLOSING) * position.elapsed**EXPONENT
    if position.own is not None:
        level = min(level, position.own_share - LEAST_STEP)
    if position.their_share > 1e-9 and (position.last_turn or position.their_share >= ENOUGH * level):
        return Decision("accept")
    deal = deal_worth(position, level, near=True)
    if position.own is None:
        purpose = "open"
    else:
        purpose = "hold" if deal == position.own else "give"
    return Decision(purpose, deal=spoken(view.side.issues, deal), point=_point(position, deal))


def _point(position: Position, deal: Deal) -> str:
    """The issue in which the deal differs most from the last offer, with its option; the one that matters most where none does."""
    issues, points = position.side.issues, position.side.points
    before = position.own or deal

    def change(issue: int) -> tuple[float, float]:
        row = points[issue]
        return abs(row[deal[issue]] - row[before[issue]]), max(row) - min(row)

    issue = max(range(len(issues)), key=change)
    return f"{issues[issue].name} {issues[issue].options[deal[issue]]}"


def _talk(view: View) -> Decision:
    if view.topics is None:
        return Decision("listen")
    kept = {wish.topic for wish in view.topics.wishes if wish.kind == KEEP}
    asked = asked_in(view.history[-1][1]) if view.history else []
    if answers := [topic.name for topic in view.topics.topics if topic.name in asked and topic.name not in kept]:
        return Decision("tell", topic=answers[0])
    for wish in view.topics.wishes:
        if wish.kind in (LEARN, TELL) and not fulfilled(wish, view.seat, view.history):
            return Decision("ask" if wish.kind == LEARN else "tell", topic=wish.topic)
    return Decision("listen")
