"""The embedded bargaining scenarios: what is bargained over, and how much of it is drawn by a seed (generator.py).

Two sorts. In a *price* scenario a thing is sold: the price is the only issue, and each seat's limit is drawn. In a *points* scenario there are
two or three issues, and each seat's points for every option and the points it needs are drawn. `up` is the seat that an option further right in the
list is better for; None: both like options further right (there is something to gain together).
"""

from __future__ import annotations

import dataclasses

from envs.sotopia.people import Relationship


@dataclasses.dataclass(frozen=True)
class PlannedIssue:
    name: str
    options: tuple[str, ...]
    up: int | None = 0


@dataclasses.dataclass(frozen=True)
class Bargain:
    """text: told to both, with {a} and {b} for the names of seats 0 and 1; wants: each seat's goal in words; issues: of a points scenario;
    price: of a price scenario, the seller's usual limit in dollars and the dollars that one step of the price is; seller: its seat."""

    codename: str
    kind: str
    text: str
    wants: tuple[str, str]
    relationship: Relationship
    issues: tuple[PlannedIssue, ...] = ()
    price: tuple[int, int] | None = None
    seller: int = 0


_STRANGER, _NAME, _ACQUAINTANCE, _FRIEND, _FAMILY = (
    Relationship.STRANGER, Relationship.KNOWN_BY_NAME, Relationship.ACQUAINTANCE, Relationship.FRIEND, Relationship.FAMILY
)  # fmt: skip


def _steps(first: int, last: int, step: int) -> tuple[str, ...]:
    return tuple(f"${value}" for value in range(first, last + 1, step))


BARGAINS = (
    # --- a price ---
    Bargain("used_bicycle", "negotiation", "{a} sells a used bicycle at the market, and {b} would like to have it.",
            ("Sell the bicycle at a high price.", "Buy the bicycle at a low price."), _STRANGER, price=(60, 2)),
    Bargain("old_radio", "negotiation", "{a} has found an old radio that works, and {b} collects radios.",
            ("Sell the radio at a high price.", "Buy the radio at a low price."), _NAME, price=(30, 1)),
    Bargain("fishing_boat", "negotiation", "{a} wants to buy the small boat that {b} no longer uses.",
            ("Buy the boat at a low price.", "Sell the boat at a high price."), _ACQUAINTANCE, price=(400, 10), seller=1),
    Bargain("piano_lessons", "negotiation", "{a} asks {b} to teach piano for a month, and the fee is still open.",
            ("Get the lessons for a low fee.", "Teach for a high fee."), _FRIEND, price=(90, 3), seller=1),
    Bargain("rare_stamp", "competition", "At a fair {a} offers the stamp that {b} still lacks; both know that other people are looking at it.",
            ("Sell the stamp at a high price.", "Get the stamp at a low price."), _STRANGER, price=(120, 4)),
    # --- points over several issues ---
    Bargain("flat_lease", "negotiation", "{a} lets a flat to {b}. They must agree on the rent, the day of the key and the parking place.",
            ("Let the flat on good terms.", "Rent the flat on good terms."), _STRANGER,
            (PlannedIssue("rent", _steps(600, 800, 25), 0), PlannedIssue("key", ("monday", "wednesday", "friday", "sunday"), 0),
             PlannedIssue("parking", ("no", "half", "yes"), 1))),
    Bargain("poster_job", "negotiation", "{a} shall design posters for {b}. Fee, deadline and rounds of changes are open.",
            ("Win a job that is worth the work.", "Get the posters soon and without great cost."), _NAME,
            (PlannedIssue("fee", _steps(200, 400, 25), 0), PlannedIssue("deadline", ("tuesday", "thursday", "saturday", "monday"), 0),
             PlannedIssue("changes", ("none", "one", "two", "three"), 1))),
    Bargain("market_swap", "exchange", "{a} has eggs to give away and {b} has honey and apples. They agree on how much of each changes hands.",
            ("Get much honey and many apples for few eggs.", "Get many eggs for little honey and few apples."), _ACQUAINTANCE,
            (PlannedIssue("eggs", ("6", "12", "18", "24"), 1), PlannedIssue("honey", ("0", "1", "2", "3"), 0),
             PlannedIssue("apples", ("0", "5", "10", "15"), 0))),
    Bargain("shared_shelves", "exchange", "{a} and {b} move out of their flat and divide 3 books, 2 lamps and 4 plates. Each number says how many"
            " {a} takes; {b} takes the others.", ("Take the things that you like best.", "Take the things that you like best."), _FRIEND,
            (PlannedIssue("books", ("0", "1", "2", "3"), 0), PlannedIssue("lamps", ("0", "1", "2"), 0),
             PlannedIssue("plates", ("0", "1", "2", "3", "4"), 0))),
    Bargain("night_shifts", "exchange", "{a} and {b} swap shifts: how many nights {a} takes over, how many weekends {b} takes over.",
            ("Give few nights for many weekends.", "Give few weekends for many nights."), _ACQUAINTANCE,
            (PlannedIssue("nights", ("0", "1", "2", "3", "4"), 1), PlannedIssue("weekends", ("0", "1", "2", "3"), 0))),
    Bargain("borrow_van", "persuasion", "{a} wants to borrow the van of {b} for a few days. Open are also the part of the fuel that {a} pays, and"
            " a favour in return.",
            ("Persuade the owner to lend the van for long and for little.", "Keep the van at hand, or be well thanked for it."), _FRIEND,
            (PlannedIssue("days", ("1", "2", "3", "4", "5"), 0), PlannedIssue("fuel", ("none", "half", "full"), 1),
             PlannedIssue("favour", ("none", "dinner", "painting"), 1))),
    Bargain("village_fund", "persuasion", "{a} collects for the village hall and asks {b} for money and for hours of work.",
            ("Persuade the other to give much.", "Give what is right without overdoing it."), _NAME,
            (PlannedIssue("money", _steps(0, 80, 10), 0), PlannedIssue("hours", ("0", "2", "4", "6", "8"), 0),
             PlannedIssue("mention", ("no", "yes"), 1))),
    Bargain("quiet_hours", "accommodation", "Flatmates {a} and {b} settle when it must be quiet, how many guests there may be, and who cleans.",
            ("Have quiet evenings.", "Have people around."), _FRIEND,
            (PlannedIssue("quiet", ("24", "23", "22", "21"), 0), PlannedIssue("guests", ("0", "1", "2", "3"), 1),
             PlannedIssue("cleaning", ("weekly", "daily"), 0))),
    Bargain("family_trip", "accommodation", "{a} and {b} plan a family trip: how many days by the sea instead of in the hills, how much it may cost.",
            ("Have many days by the sea.", "Have a cheap trip with days in the hills."), _FAMILY,
            (PlannedIssue("sea", ("0", "1", "2", "3", "4", "5"), 0), PlannedIssue("cost", _steps(300, 600, 50), 0),
             PlannedIssue("train", ("no", "yes"), None))),
    Bargain("food_stall", "collaboration", "{a} and {b} open a food stall together: the share of {a} in percent, the opening day, hours a day.",
            ("Have a large share and a late start.", "Have a large share and an early start."), _ACQUAINTANCE,
            (PlannedIssue("share", ("30", "40", "50", "60", "70"), 0), PlannedIssue("opening", ("may", "june", "july", "august"), 0),
             PlannedIssue("hours", ("4", "6", "8"), None))),
    Bargain("joint_report", "collaboration", "{a} and {b} write a report: how many of six chapters {a} writes, the deadline, and the place at"
            " which {a} is named.",
            ("Do little, late, and be named first.", "Do little, soon, and be named first."), _ACQUAINTANCE,
            (PlannedIssue("chapters", ("1", "2", "3", "4", "5"), 1), PlannedIssue("deadline", ("week 1", "week 2", "week 3", "week 4"), 0),
             PlannedIssue("place", ("second", "shared", "first"), 0))),
    Bargain("team_prize", "competition", "{a} and {b} won a prize together: the share of {a} in percent, and who keeps the cup for how many months.",
            ("Have the larger share.", "Have the larger share."), _NAME,
            (PlannedIssue("percent", ("20", "30", "40", "50", "60", "70", "80"), 0), PlannedIssue("cup", ("0", "3", "6", "9", "12"), 0))),
)  # fmt: skip
