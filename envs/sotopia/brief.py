"""A bargaining game in few words, for models too small to read the full context: who one is, what one needs, and what was said.

Left out are the biographies (but for the other's personality, where the seat may know it), the rule of agreement, and the points between the first
and the last option of an issue, which rise or fall evenly.
"""

from __future__ import annotations

from envs.sotopia.action import SPEAK
from envs.sotopia.generator import RULE
from envs.sotopia.people import UNKNOWN
from envs.sotopia.scenario import View


def opening(view: View) -> str:
    """The context of a game, in one paragraph."""
    side = view.side
    if side.price_limit is not None:
        terms = f"price {side.issues[0].options[0]} to {side.issues[0].options[-1]}, limit {side.price_limit}"
    else:
        ends = (
            f"{issue.name} {issue.options[0]} {row[0]:g} to {issue.options[-1]} {row[-1]:g}"
            for issue, row in zip(side.issues, side.points, strict=True)
        )
        terms = f"{', '.join(ends)}; more than {side.reserve:g} needed"
    want = view.goal.partition(". ")[0]
    _, _, personality = view.other_background.partition("Personality and values description: ")
    moves = (view.max_turns - view.seat + 1) // 2
    parts = [view.scenario.partition(f" {RULE}")[0], f"You are {_first(view, view.seat)}. {want}: {terms}. {moves} moves."]
    if personality and view.other_background != UNKNOWN:
        parts.append(personality)
    return " ".join(parts)


def line(view: View, number: int) -> str:
    """What happened in a turn."""
    seat, action = view.history[number]
    name = "You" if seat == view.seat else _first(view, seat)
    return f"{name}: {action.argument}" if action.action_type == SPEAK else action.told(name)


def _first(view: View, seat: int) -> str:
    return view.names[seat].partition(" ")[0]
