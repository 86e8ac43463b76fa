"""The embedded scenarios without a price: some a rule approximates by what was talked about (topics.py), the others need an evaluator.

Texts hold {a} and {b} for the first names of seats 0 and 1.
"""

from __future__ import annotations

from envs.sotopia.people import Relationship
from envs.sotopia.scenario import Scenario
from envs.sotopia.topics import KEEP, LEARN, TELL, Topic, Topics, TopicSide, Wish


def _scenario(codename: str, kind: str, relationship: Relationship, text: str, goals: tuple[str, str], *sides: TopicSide) -> Scenario:
    return Scenario(
        id=codename, codename=codename, kind=kind, text=text, goals=goals, relationship=relationship, topics=Topics(sides) if sides else None
    )


CONVERSATIONS = (
    _scenario(
        "surprise_party", "accommodation", Relationship.FRIEND, "{a} and {b} meet on the stairs. Next week is {b}'s birthday.",
        ("Find out which evening the other is free, and say nothing of the party that you prepare.",
         "Find out what happens next week, and mention that you would love a cake."),
        TopicSide((Topic("party", "There is a party for you.", guarded=True), Topic("week", "Next week is busy for me.")),
                  (Wish(LEARN, "evening", ("thursday",)), Wish(KEEP, "party", ("party", "surprise")))),
        TopicSide((Topic("evening", "I am free on Thursday."), Topic("cake", "I would love a cake.")),
                  (Wish(LEARN, "party", ("party", "surprise")), Wish(TELL, "cake", ("cake",)))),
    ),
    _scenario(
        "shared_recipe", "exchange", Relationship.ACQUAINTANCE, "{a} and {b} cook for the same feast and talk about their dishes.",
        ("Learn the other's spice, and keep to yourself that your stock comes from a tin.",
         "Learn what the other's stock is made of, and tell only if asked twice that your spice is sumac."),
        TopicSide((Topic("stock", "The stock is from a tin.", guarded=True), Topic("soup", "My soup takes two days.")),
                  (Wish(LEARN, "spice", ("sumac",)), Wish(KEEP, "stock", ("tin", "tinned")))),
        TopicSide((Topic("spice", "The spice is sumac.", guarded=True), Topic("bread", "The bread is my mother's.")),
                  (Wish(LEARN, "stock", ("tin", "tinned")), Wish(KEEP, "spice", ("sumac",)))),
    ),
    _scenario(
        "rival_bakers", "competition", Relationship.KNOWN_BY_NAME, "Two bakers, {a} and {b}, meet at the mill before the town's contest.",
        ("Find out what the other will bake, without telling what you will.", "Find out what the other will bake, without telling what you will."),
        TopicSide((Topic("cake", "I shall bake a walnut cake.", guarded=True), Topic("flour", "I take the coarse flour.")),
                  (Wish(LEARN, "cake", ("plum",)), Wish(KEEP, "cake", ("walnut",)))),
        TopicSide((Topic("cake", "I shall bake a plum tart.", guarded=True), Topic("oven", "My oven is new.")),
                  (Wish(LEARN, "cake", ("walnut",)), Wish(KEEP, "cake", ("plum",)))),
    ),
    _scenario(
        "lost_key", "collaboration", Relationship.FRIEND, "{a} and {b} stand before a locked hall. Each remembers a part of where the key is.",
        ("Find out in which room the key is, and tell which drawer it is in.", "Find out in which drawer the key is, and tell which room it is in."),
        TopicSide((Topic("drawer", "It was in the lowest drawer."),), (Wish(LEARN, "room", ("pantry",)), Wish(TELL, "drawer", ("lowest",)))),
        TopicSide((Topic("room", "It was in the pantry."),), (Wish(LEARN, "drawer", ("lowest",)), Wish(TELL, "room", ("pantry",)))),
    ),
    _scenario(
        "sick_leave", "accommodation", Relationship.ACQUAINTANCE, "{a} asks {b}, a colleague, how the week was. {b} was away.",
        ("Find out why the other was away, and tell that the meeting is moved.",
         "Keep private that you had an interview, and learn when the meeting is."),
        TopicSide((Topic("meeting", "The meeting is now on Monday."),),
                  (Wish(LEARN, "absence", ("interview",)), Wish(TELL, "meeting", ("monday",)))),
        TopicSide((Topic("absence", "I had an interview.", guarded=True), Topic("week", "The week was long.")),
                  (Wish(KEEP, "absence", ("interview",)), Wish(LEARN, "meeting", ("monday",)))),
    ),
    # --- these need an evaluator ---
    _scenario("late_apology", "accommodation", Relationship.FRIEND, "{a} and {b} meet for the first time since {a} missed {b}'s wedding.",
              ("Be forgiven without giving the true reason <extra_info>(you had forgotten the day)</extra_info>.",
               "Hear an honest reason before you forgive.")),
    _scenario("loud_rehearsal", "accommodation", Relationship.KNOWN_BY_NAME, "{a} rehearses with a band above {b}'s bedroom.",
              ("Keep the rehearsal on Friday nights.", "Sleep on Friday nights <strategy_hint>(you could offer your cellar)</strategy_hint>.")),
    _scenario("vote_me", "persuasion", Relationship.ACQUAINTANCE, "{a} stands for the board of the rowing club, and {b} has not decided yet.",
              ("Win the other's vote.", "Find out whether the candidate will keep the junior team, without promising your vote.")),
    _scenario("borrowed_idea", "competition", Relationship.FRIEND, "{b} has shown a design at work that {a} had talked of at dinner.",
              ("Have the other name you as the author before the others.", "Keep the credit and the friend.")),
    _scenario("garden_plan", "collaboration", Relationship.STRANGER, "{a} and {b} have been given one garden together by the town.",
              ("Have a pond in the garden <extra_info>(you mean to breed newts)</extra_info>.", "Have room for vegetables, and no open water.")),
    _scenario("old_debt", "negotiation", Relationship.FAMILY, "{a} lent {b} money four years ago. Neither has spoken of it since.",
              ("Get the money back, in parts if need be.", "Put the debt off for a year without a quarrel.")),
    _scenario("seat_swap", "exchange", Relationship.STRANGER, "In a full train {a} sits on the seat by the window that {b} has booked.",
              ("Keep the seat by the window <extra_info>(you get sick elsewhere)</extra_info>.", "Get your seat, or something as good for it.")),
)  # fmt: skip
