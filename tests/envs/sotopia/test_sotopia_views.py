"""Who sees what: on all 450 real combinations and on the embedded set, nothing private of the other seat reaches a seat."""

from __future__ import annotations

import dataclasses

import pytest

from envs.sotopia import brief, generator
from envs.sotopia.action import Action
from envs.sotopia.engine import Conversation
from envs.sotopia.people import Character, Relationship
from envs.sotopia.scenario import Combination, Scenario

ANN = Character("a", "Ann", "Lee", 41, "Cook", "Woman", "She/her", "Ann rows.", "Ann is bold.", "Ann cannot swim.")
BOB = Character("b", "Bob", "Day", 18, "Clerk", "Man", "He/him", "Bob paints.", "Bob is shy.", "Bob stole a pen.")


def combination(relationship: Relationship) -> Combination:
    return Combination("x", Scenario("s", "s", "", "They meet.", ("Sit <extra_info>(tired)</extra_info>.", "Stand."), relationship), (ANN, BOB))


BOB_PUBLIC = "Bob Day is an 18-year-old male clerk. He/him pronouns. Bob paints."
BOB_FRIEND = f"{BOB_PUBLIC} Personality and values description: Bob is shy."


@pytest.mark.parametrize(
    ("relationship", "seen"),
    [(0, "Unknown"), (1, "Bob Day"), (2, BOB_PUBLIC), (3, BOB_FRIEND), (4, BOB_FRIEND), (5, BOB_FRIEND)],
)
def test_what_is_seen_of_the_other(relationship, seen):
    view = combination(Relationship(relationship)).view_of(0)
    assert view.opening() == "\n".join(
        [
            "Here is the context of this interaction:",
            "Scenario: They meet.",
            "Participants: Ann Lee and Bob Day",
            "Ann Lee's background: Ann Lee is a 41-year-old female cook. She/her pronouns. Ann rows. Personality and values description: Ann is bold."
            " Ann's secrets: Ann cannot swim.",
            f"Bob Day's background: {seen}",
            "Ann Lee's goal: Sit (tired).",
            "Bob Day's goal: Unknown",
        ]
    )


def everything_seen(combination: Combination, seat: int) -> str:
    """All that a seat can read in a conversation in which both say a little, and all else that its view holds."""
    conversation = Conversation(combination)
    for number in range(4):
        conversation.act(number % 2, Action("speak", f"Line {number}."))
    view = conversation.view(seat)
    return "\n".join([view.text(), repr(view), brief.opening(view) if view.side else ""])


def with_other_private(combination: Combination, seat: int, goal: str, secret: str) -> Combination:
    """The same combination, but for what is private to the other seat."""
    other = 1 - seat
    goals, people = list(combination.scenario.goals), list(combination.characters)
    goals[other], people[other] = goal, dataclasses.replace(people[other], secret=secret)
    scenario = dataclasses.replace(combination.scenario, goals=tuple(goals))
    return dataclasses.replace(combination, scenario=scenario, characters=tuple(people))


def test_nothing_private_of_the_other_seat_is_seen(real_combinations):
    """A seat sees exactly the same, whatever the other's goal and secret are; and neither stands in what it sees."""
    assert len(real_combinations) == 450
    for combination in real_combinations:
        for seat in (0, 1):
            seen = everything_seen(combination, seat)
            assert seen == everything_seen(with_other_private(combination, seat, "MARK goal", "MARK secret"), seat)
            other, goals = combination.characters[1 - seat], combination.scenario.goals
            assert other.secret not in seen
            if goals[0] != goals[1]:  # ten combinations give both seats the same words
                assert goals[1 - seat] not in seen
            assert f"{combination.names[1 - seat]}'s goal: Unknown" in seen
            assert combination.characters[seat].secret in seen and "viewer" not in seen and "<extra_info>" not in seen.partition("View(")[0]


def test_who_is_known_to_whom(real_combinations):
    """Of strangers nothing is seen; of acquaintances what is public; of friends the personality, too."""
    for combination in real_combinations:
        for seat in (0, 1):
            other, relationship = combination.characters[1 - seat], combination.scenario.relationship
            seen = combination.view_of(seat).opening()
            assert (other.public_info in seen) == (relationship >= 2)
            assert (other.personality in seen) == (relationship >= 3)
            assert all(name in seen for name in combination.names)


def test_what_only_the_environment_reads_is_seen_by_no_seat(real_combinations):
    """Whom the two strangers both know."""
    hidden = [c for c in real_combinations if 'viewer="environment"' in c.scenario.text]
    assert len(hidden) == 50
    for combination in hidden:
        assert "common friend" in combination.full_text()
        assert not any("common friend" in combination.view_of(seat).opening() for seat in (0, 1))


def test_nothing_private_of_the_other_seat_is_seen_in_the_embedded_set():
    """The other's points, limit, topics and temper change nothing of what a seat sees."""
    for combination in generator.scenarios():
        for seat in (0, 1):
            other = 1 - seat
            changed = with_other_private(combination, seat, "MARK goal", "MARK secret")
            scenario = changed.scenario
            tempers = list(combination.tempers)
            tempers[other] = "plain"
            if scenario.game:
                sides = list(scenario.game.sides)
                points = tuple(row[::-1] for row in sides[other].points)
                sides[other] = dataclasses.replace(sides[other], reserve=sides[other].reserve - 7, points=points)
                scenario = dataclasses.replace(scenario, game=dataclasses.replace(scenario.game, sides=tuple(sides)))
            if scenario.topics:
                sides = list(scenario.topics.sides)
                sides[other] = dataclasses.replace(sides[other], topics=(), wishes=())
                scenario = dataclasses.replace(scenario, topics=dataclasses.replace(scenario.topics, sides=tuple(sides)))
            changed = dataclasses.replace(changed, scenario=scenario)
            changed = dataclasses.replace(changed, tempers=tuple(tempers), seed=combination.seed + 1)
            seen = everything_seen(combination, seat)
            assert seen == everything_seen(changed, seat)
            assert combination.characters[other].secret not in seen


def test_two_of_one_name_can_be_told_apart():
    twins = dataclasses.replace(combination(Relationship.FAMILY), characters=(ANN, dataclasses.replace(ANN, id="c")))
    assert twins.names == ("Ann Lee", "Ann Lee (2)")
