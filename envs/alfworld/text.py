"""The sentences of ALFWorld's grammar, word for word as TextWorld prints them."""

from __future__ import annotations

from collections.abc import Sequence

BANNER = "-= Welcome to TextWorld, ALFRED! =-"
INVALID = "Nothing happens."
HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def listing(names: Sequence[str], article: str = "a ") -> str:
    """"a x, a y, and a z"; "nothing" when empty; also two are joined by ", and "."""
    if not names:
        return "nothing"
    shown = [article + name for name in names]
    if len(shown) == 1:
        return shown[0]
    return ", ".join(shown[:-1]) + ", and " + shown[-1]


def room(receptacles: Sequence[str]) -> str:
    return f"You are in the middle of a room. Looking quickly around you, you see {listing(receptacles)}."


def facing(receptacles: Sequence[str], floor: Sequence[str]) -> str:
    return f"You are facing the {listing(receptacles, '')}. Next to it, you see {listing(floor)}."


def receptacle(name: str, openable: bool, opened: bool, inside: Sequence[str]) -> str:
    if not openable:
        return f"On the {name}, you see {listing(inside)}."
    if opened:
        return f"The {name} is open. In it, you see {listing(inside)}."
    return f"The {name} is closed."


def thing(
    name: str, contents: Sequence[str] | None, *, clean: bool, hot: bool, cool: bool, sliced: bool, on: bool
) -> str:
    """What a look at a held thing shows. contents: None unless it can hold things; on: toggled at least once.

    sliced is told only of what can be sliced, unless a temperature or cleanness is told too; so is `on`.
    """
    if contents is not None:
        return f"This is a normal {name}. In it, you see {listing(contents)}."
    if sliced:
        if clean and hot:
            return f"This is a hot and clean sliced {name}."
        if clean and cool:
            return f"This is a cool and clean sliced {name}."
        if clean:
            return f"This is a clean sliced {name}."
        if hot:
            return f"This is a hot sliced {name}."
        if cool:
            return f"This is a cool sliced {name}."
    if clean and hot:
        return f"This is a hot and clean {name}."
    if clean and cool:
        return f"This is a cool and clean {name}."
    if hot:
        return f"This is a hot {name}."
    if clean:
        return f"This is a clean {name}."
    if cool:
        return f"This is a cold {name}."
    if on:
        return f"This {name} is on."
    if sliced:
        return f"This is a sliced {name}."
    return f"There's nothing special about {name}."
