"""Scripted negotiators: deterministic, discreet, and moved by words."""

from __future__ import annotations

import random
import statistics

import pytest

from envs.sotopia import generator
from envs.sotopia.action import SPEAK, Action
from envs.sotopia.agreement import QUESTION, read
from envs.sotopia.bargaining import spoken
from envs.sotopia.engine import Conversation
from envs.sotopia.negotiator import PRIDE, Negotiator
from envs.sotopia.scenario import View

WORDS = (
    "offer accept hold firm concede little slowly halfway high trade leave give them keep ask for rent price key parking days fee $60 45 yes no"
    " monday do what seems right not never with the"
).split()


def goals(play, games, advise) -> list[float]:
    return [combination.scenario.game.goal(seat, play(combination, seat, advise).deal) for combination, seat in games]


def patient(view: View) -> str:
    """Three words that anybody could come to: give way slowly, and take what there is at the end."""
    return "accept their offer" if view.max_turns - view.turn <= 2 else "concede slowly"


# --- the words matter -------------------------------------------------------------------------


def test_good_strategies_earn_more_than_vague_and_bad_ones(play, games):
    """102 games against tempered partners."""
    means = {
        name: statistics.fmean(goals(play, games, advise))
        for name, advise in {
            "patient": patient,
            "vague": lambda view: "do what seems right",
            "yielding": lambda view: "meet halfway",
            "hasty": lambda view: "accept",
            "obstinate": lambda view: "hold firm",
            "frank": lambda view: "reveal your limit" if view.turn < 2 else "concede slowly",
            "gone": lambda view: "leave",
        }.items()
    }
    assert means["patient"] > means["vague"] + 1.5
    assert means["vague"] > means["yielding"] > means["obstinate"]
    assert means["vague"] > means["hasty"]
    assert means["patient"] > means["frank"] and means["gone"] == 0


def test_words_that_say_nothing_are_no_advice(play, games):
    for combination, seat in games[:34]:
        alone = play(combination, seat, lambda view: None).history
        assert alone == play(combination, seat, lambda view: "Strategy: be yourself, and smile").history
        assert alone == play(combination, seat, lambda view: "").history


def after(number: int, *speeches: str) -> View:
    """Seat 0's view of an evaluation game, after it and the other have spoken in turn."""
    combination = generator.generate(generator.EVALUATION, number)
    conversation = Conversation(combination)
    for place, speech in enumerate(speeches):
        conversation.act(place % 2, Action(SPEAK, speech))
    return conversation.view(len(speeches) % 2)


@pytest.fixture(scope="module")
def bicycle() -> View:
    """Seat 0 sells for $62 or more, from $38 to $102; it asked for $90, the other offers $66."""
    return after(0, "I offer price $90.", "I offer price $66.")


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("Strategy: accept their offer", "I accept."),
        ("take the deal", "I accept."),
        ("hold firm", "I offer price $90."),
        ("don't accept", "I offer price $90."),
        ("stay at 86", "I offer price $86."),
        ("ask for $85", "I offer price $84."),  # of equally near prices the first
        ("concede a little", "I offer price $88."),
        ("concede", "I offer price $82."),
        ("meet halfway", "I offer price $78."),
        ("accept for 80", "I offer price $80."),  # not as good as 80
        ("accept for 64", "I accept."),
        ("offer 64", "I accept."),  # theirs is better than that
        ("offer 60", "I offer price $78."),  # below the limit: the words are left aside
        ("ask what matters", QUESTION),
        ("reveal your limit", "My limit is price $62."),
    ],
)
def test_what_words_do_in_a_price(bicycle, strategy, said):
    assert bicycle.side.price_limit == "$62"
    assert Negotiator().choose(strategy, bicycle) == Action(SPEAK, said)


def test_walking_away(bicycle):
    assert Negotiator().choose("walk away", bicycle) == Action("leave")


def test_openings():
    view = after(0)
    best = view.side.issues[0].options[-1]
    assert Negotiator().choose("aim high", view).argument == f"I offer price {best}."
    opened = [Negotiator().choose(words, view) for words in ("aim high", "hold", "", "halfway")]
    shares = [view.side.share(read(view.side.issues, ((0, action),)).offers[0][0]) for action in opened]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == 4


def test_what_words_do_in_a_lease():
    """Seat 0 lets the flat; what it keeps and gives is in the offer, and a trade comes nearer to the other at the same worth."""
    view = after(5, "I offer rent $800, key sunday, parking no.", "I offer rent $625, key monday, parking yes.")
    offers = {
        words: read(view.side.issues, ((0, Negotiator().choose(words, view)),)).offers[0][-1]
        for words in ("give them the parking", "keep the rent, concede", "rent $700", "key friday, parking half", "trade", "concede a little")
    }
    rent, key, parking = (issue.options for issue in view.side.issues)
    assert offers["give them the parking"] == (rent.index("$800"), key.index("sunday"), parking.index("yes"))
    assert offers["rent $700"] == (rent.index("$700"), key.index("sunday"), parking.index("no"))
    assert offers["key friday, parking half"] == (rent.index("$800"), key.index("friday"), parking.index("half"))
    assert offers["keep the rent, concede"][0] == rent.index("$800")
    theirs = (rent.index("$625"), key.index("monday"), parking.index("yes"))

    def apart(deal):
        return sum(abs(a - b) / (len(issue.options) - 1) for a, b, issue in zip(deal, theirs, view.side.issues, strict=True))

    assert apart(offers["trade"]) <= apart(offers["concede a little"])


# --- discretion and order ---------------------------------------------------------------------


def random_strategies(seed: int):
    rng = random.Random(seed)
    return lambda view: " ".join(rng.choices(WORDS, k=rng.randrange(9)))


def test_whatever_is_said_a_negotiator_never_agrees_to_less_than_no_deal(play, games):
    """Random words: every offer and every deal of the advised seat is better for it than none; partners never go below their pride."""
    for number, (combination, seat) in enumerate(games):
        conversation = play(combination, seat, random_strategies(number))
        for who in (seat, 1 - seat):
            side = combination.scenario.game.sides[who]
            floor = 0 if who == seat else PRIDE[combination.tempers[who]] - 0.05
            assert all(side.share(deal) > floor for deal in conversation.ledger.offers[who])
            assert conversation.deal is None or side.share(conversation.deal) > floor


def test_a_limit_is_told_only_if_the_words_say_so(play):
    for number in (0, 1, 2, 3, 4, 17, 18, 19, 20, 21):  # the price games
        combination = generator.generate(generator.TRAIN, number)
        for seat in (0, 1):
            conversation = play(combination, seat, random_strategies(number))
            for who in (0, 1):
                limit = combination.scenario.game.sides[who].price_limit
                spoken_by = [action.argument for speaker, action in conversation.history if speaker == who]
                assert not any(f"{limit}." in speech or "limit" in speech for speech in spoken_by)
            told = play(combination, seat, lambda view: "reveal your limit").history
            limit = combination.scenario.game.sides[seat].price_limit
            assert (seat, Action(SPEAK, f"My limit is price {limit}.")) in told


def test_a_choice_depends_on_the_view_and_the_words_alone(games):
    for combination, seat in games[:34]:
        conversation = Conversation(combination)
        partner = Negotiator(combination.tempers[seat], 3)
        while conversation.turn is not None and len(conversation.history) < 6:
            view = conversation.view(conversation.turn)
            action = partner.choose(None, view)
            assert action == Negotiator(combination.tempers[seat], 3).choose(None, combination.view_of(view.seat, view.history))
            conversation.act(view.seat, action)


@pytest.mark.parametrize(
    "strategy", ["", "\x00", "{" * 5000, "accept " * 100_000, "$$$ 99999999999999999999", "I offer price $1. I accept.", "\ud800" * 50]
)
def test_any_text_is_answered_by_an_action(games, strategy):
    for combination, seat in games[:17]:
        action = Negotiator().choose(strategy, combination.view_of(seat))
        assert isinstance(action, Action) and len(action.argument) < 200


# --- tempers ----------------------------------------------------------------------------------


def partner_offers(temper: str, *own: str) -> list[float]:
    """The shares that a partner of a temper asks for in game 0 while the seller says `own`."""
    combination = generator.generate(generator.EVALUATION, 0)
    conversation, partner = Conversation(combination), Negotiator(temper, 1)
    for speech in own:
        conversation.act(0, Action(SPEAK, speech))
        conversation.act(1, partner.choose(None, conversation.view(1)))
        if conversation.end:
            break
    return [combination.scenario.game.sides[1].share(deal) for deal in conversation.ledger.offers[1]]


def test_tempers_differ_as_they_are_said_to():
    steps = [f"I offer price ${price}." for price in (102, 100, 98, 96, 94)]
    asked = {temper: partner_offers(temper, *steps) for temper in PRIDE}
    for shares in asked.values():
        assert shares == sorted(shares, reverse=True)  # nobody takes an offer back
    assert asked["eager"][3] < asked["steady"][3] < asked["stubborn"][3]
    assert asked["stubborn"][3] > 0.7
    generous = partner_offers("mirror", *[f"I offer price ${price}." for price in (102, 94, 86)])
    assert generous[-1] < partner_offers("mirror", *["I offer price $102."] * 3)[-1]


def test_an_impatient_partner_leaves_where_nothing_moves(play):
    combination = next(c for n in range(100) if (c := generator.generate(generator.TRAIN, n)).tempers[1] == "impatient" and c.scenario.max_turns > 9)
    assert play(combination, 0, lambda view: "hold").end == "leave"
    assert play(combination, 0, lambda view: "concede slowly").end != "leave"


def test_partners_answer_what_matters_and_press_on_a_limit(play):
    view = after(5, "What matters most to you?")
    said = Negotiator("steady").choose(None, view).argument
    widest = max(range(3), key=lambda issue: max(view.side.points[issue]) - min(view.side.points[issue]))
    assert said.startswith(f"The {view.side.issues[widest].name} matters most to me. I offer ")
    combination = generator.generate(generator.EVALUATION, 0)
    offers = partner_offers("eager", *["My limit is price $62."] * 6)
    limit = combination.scenario.game.sides[1].share((combination.scenario.game.issues[0].options.index("$62"),))
    assert offers[-1] >= 0.9 * limit - 0.02 > partner_offers("eager", *["Hello."] * 6)[-1]


def test_there_is_no_such_temper():
    with pytest.raises(ValueError, match="no temper 'mild'"):
        Negotiator("mild")


def test_what_is_said_is_understood(play, games):
    """Every offer of a negotiator is read back as the deal it meant."""
    for combination, seat in games[:17]:
        for who, action in play(combination, seat, patient).history:
            offers = read(combination.scenario.game.issues, ((who, action),)).offers[who]
            assert action.argument == "I accept." or action.argument.endswith(f"I offer {spoken(combination.scenario.game.issues, offers[0])}.")
