"""Damaged, foreign and hostile game files: one sentence each, nothing evaluated, nothing hangs."""

from __future__ import annotations

import json
import os
import pathlib
import time

import pytest

from envs.alfworld import pddl
from envs.alfworld.loader import MAX_BYTES, Game
from epo_jax.errors import UserError


def refused(data: object) -> str:
    with pytest.raises(UserError) as caught:
        Game.from_dict(data, source="the file")
    message = str(caught.value)
    assert message.startswith("the file cannot be played: ") and "\n" not in message and len(message) < 500
    return message


def with_problem(data: dict, old: str, new: str) -> dict:
    assert old in data["pddl_problem"]
    return data | {"pddl_problem": data["pddl_problem"].replace(old, new, 1)}


def test_a_real_game_is_read_in_full(seen_games):
    path = "json_2.1.1/valid_seen/look_at_obj_in_light-AlarmClock-None-DeskLamp-323/trial_T20190909_044715_250790/game.tw-pddl"
    game = Game.from_dict(seen_games[path])
    assert (game.goal.task_type, game.goal.target, game.goal.lamp) == ("look_at_obj_in_light", "alarmclock", "desklamp")
    assert game.task == "Your task is to: look at alarmclock under the desklamp."
    assert game.walkthrough == ("go to desk 1", "use desklamp 1", "take alarmclock 2 from desk 1")
    assert len(game.receptacles) == 19 and game.receptacles["safe 1"].openable and not game.receptacles["desk 1"].openable
    assert "alarmclock 2" in game.inside["desk 1"] and game.things["desklamp 1"].toggleable


@pytest.mark.parametrize("key", ["pddl_domain", "grammar", "pddl_problem"])
@pytest.mark.parametrize("value", [None, 3, ["(define)"], {"a": "b"}, True])
def test_wrong_types(game_data, key, value):
    assert key in refused(game_data | {key: value})


@pytest.mark.parametrize("data", [None, [], "game", 3, {}])
def test_not_a_game_at_all(data):
    refused(data)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_solvable_must_be_a_truth_value(game_data, value):
    assert "solvable" in refused(game_data | {"solvable": value})


@pytest.mark.parametrize("value", ["look", [1], [["look"]], ["look\x1b[2J"], ["x" * 1000], ["look"] * 100_000])
def test_walkthrough_must_be_commands(game_data, value):
    assert "walkthrough" in refused(game_data | {"walkthrough": value})


def test_other_rules_are_refused(game_data):
    changed = game_data["pddl_domain"].replace("(not (holdsAny ?a))", "(holdsAny ?a)")
    assert changed != game_data["pddl_domain"]
    assert "json_2.1.1" in refused(game_data | {"pddl_domain": changed})
    changed = game_data["grammar"].replace("You open the", "You tear open the")
    assert changed != game_data["grammar"]
    assert "json_2.1.1" in refused(game_data | {"grammar": changed})
    refused(game_data | {"grammar": ""})
    refused(game_data | {"pddl_domain": ""})


def test_comments_line_ends_and_case_of_the_domain_do_not_matter(game_data):
    game = Game.from_dict(game_data)
    same = game_data | {
        "pddl_domain": "; another comment\r\n" + game_data["pddl_domain"].upper().replace("\n", "\r\n"),
        "grammar": game_data["grammar"].replace("\n", "\r\n"),
    }
    assert Game.from_dict(same) == game


@pytest.mark.parametrize(
    "sentence",
    [
        "{__import__('os').system('touch pwned')}",
        "[{o.name | atlocation(a:agent, l:location)}]",
        "#look.feedback#",
        "\\u001b[2Jgone",
        "one\\nYour task is to: another",
        "x" * 401,
        "   ",
        "\\ud800",
    ],
)
def test_the_sentence_is_text_and_never_grammar(game_data, sentence, tmp_path, monkeypatch):
    """TextWorld evaluates what stands in braces; here such a game is refused."""
    monkeypatch.chdir(tmp_path)
    task = Game.from_dict(game_data).task
    assert "task sentence" in refused(game_data | {"grammar": game_data["grammar"].replace(task, sentence)})
    assert not os.listdir(tmp_path)


def test_code_elsewhere_in_the_grammar_is_refused(game_data):
    attack = game_data["grammar"].replace("{r.name}", "{__import__('os').getcwd()}", 1)
    assert attack != game_data["grammar"]
    refused(game_data | {"grammar": attack})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(:init", "(:init (fly agent1)", "unknown predicate"),
        ("(:init", "(:init (openable)", "takes 1 arguments"),
        ("(:init", "(:init (openable agent1)", "no declared receptacle"),
        ("(:init", "(:init (openable nothing_bar_9)", "no declared receptacle"),
        ("(:init", "(:init (openable (openable agent1))", "no declared receptacle"),
        ("(:init", "(:init agent1", "not a fact"),
        ("(:init", "(:init ()", "not a fact"),
        ("(:init", "(:start", "unknown section"),
        ("(:goal", "(:goal (and)) (:goal", "two sections"),
        ("(:domain alfred)", "(:domain chess)", "another domain"),
        ("(:objects", "(:objects agent1 - agent", "twice"),
        ("(:objects", "(:objects x - dragon", "unknown type"),
        ("(:objects", "(:objects ? - object", "unusable name"),
        ("(:objects", "(:objects (a)", "bracket"),
        ("(atLocation agent1", "(checked agent1) ;", "one agent at one location"),
        ("(:goal", "(:goal (and (winning agent1))) (:metric", "six task types"),
        ("(exists", "(forall", "six task types"),
        ("(define", "(undefine", "define"),
        ("(define", "((define", "cut short"),
        ("(define", "(define))", "never opened"),
    ],
)
def test_damaged_problems(game_data, old, new, words):
    assert words in refused(with_problem(game_data, old, new))


def test_a_receptacle_needs_one_type_and_one_place(game_data):
    game = Game.from_dict(game_data)
    fact = next(part for part in game_data["pddl_problem"].split("(") if part.startswith("receptacleAtLocation "))
    refused(with_problem(game_data, "(" + fact.rstrip(), ""))
    identifier = fact.split()[1]
    another = next(place.location for place in game.receptacles.values() if place.location != fact.split()[2].strip(")").lower())
    assert "two facts" in refused(with_problem(game_data, "(:init", f"(:init (receptacleAtLocation {identifier} {another})"))


def test_a_game_cut_anywhere_is_refused(game_data):
    problem = game_data["pddl_problem"].rstrip()
    for length in range(0, len(problem), max(1, len(problem) // 40)):
        refused(game_data | {"pddl_problem": problem[:length]})


@pytest.mark.parametrize("text", ["(" * 100_000, "(" * 60 + ")" * 60, ")" * 100, "(a " * 30 + ")" * 30, ";" * 100_000, "", "\x00"])
def test_nesting_and_nonsense(game_data, text):
    refused(game_data | {"pddl_problem": text})


def test_a_flood_is_refused_quickly(game_data):
    started = time.process_time()
    refused(game_data | {"pddl_problem": "x" * (pddl.MAX_CHARACTERS + 1)})
    refused(game_data | {"pddl_problem": "a " * (pddl.MAX_WORDS + 1)})
    many = " ".join(f"thing_bar_{index} - object" for index in range(6_000))
    facts = " ".join(f"(pickupable thing_bar_{index})" for index in range(6_000))
    flood = with_problem(with_problem(game_data, "(:objects", f"(:objects {many}"), "(:init", f"(:init {facts}")
    assert "more than 5000" in refused(flood)
    assert time.process_time() - started < 5


# --- files ---------------------------------------------------------------------------------------


def refused_file(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        Game.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_good_file_loads(game_data, tmp_path):
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(game_data), encoding="utf-8")
    assert Game.load(path).task == Game.from_dict(game_data).task


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a":' * 50_000, "not valid JSON"),
        (b'{"solvable": ' + b"9" * 10_000 + b"}", "JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "pddl_domain"),
        (b" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "game.tw-pddl"
    path.write_bytes(content)
    assert words in refused_file(path)


def test_what_is_no_file(tmp_path):
    assert "not a file" in refused_file(tmp_path)
    assert "cannot be read" in refused_file(tmp_path / "missing.tw-pddl")
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused_file(tmp_path / "pipe")  # opening it would wait for ever
