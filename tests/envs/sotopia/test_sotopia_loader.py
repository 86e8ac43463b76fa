"""The real files are read whole; damaged ones are told in one sentence."""

from __future__ import annotations

import collections
import json
import pathlib

import pytest

from envs.sotopia import loader
from envs.sotopia.loader import CHARACTERS, COMBINATIONS, SCENARIOS, USED, combinations
from envs.sotopia.people import Relationship
from epo_jax.errors import UserError


def test_the_real_files(real_combinations, sotopia_data):
    lines = [json.loads(line) for line in (sotopia_data / COMBINATIONS).read_text().splitlines()]
    assert [(c.id, c.scenario.id, [who.id for who in c.characters]) for c in real_combinations] == [
        (line["combo_id"], line["env_id"], line["agent_ids"]) for line in lines
    ]
    per_scenario = collections.Counter(c.scenario.id for c in real_combinations)
    assert len(real_combinations) == 450 and len(per_scenario) == 90 and set(per_scenario.values()) == {5}
    assert all(who.secret and who.age and who.occupation for c in real_combinations for who in c.characters)
    assert collections.Counter(c.scenario.relationship.value for c in real_combinations) == {3: 230, 0: 125, 2: 50, 4: 25, 1: 20}


def test_the_hard_ones(real_combinations, sotopia_data):
    listed = json.loads((sotopia_data / USED).read_text())["sotopia_hard_env"]
    hard = combinations(sotopia_data, "hard")
    assert len(hard) == 70 and {c.scenario.id for c in hard} == set(listed) and set(hard) <= set(real_combinations)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_scenarios_that_are_listed_but_not_there(sotopia_data, split):
    """SOTOPIA-π's lists name scenarios that the evaluation set's files do not hold."""
    with pytest.raises(UserError, match=f"no combination of the (400|10) scenarios .* lists for '{split}'"):
        combinations(sotopia_data, split)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A small set of files in the same format, with absent fields."""
    people = [
        {"agent_id": "A1", "first_name": "Ann", "last_name": "nan", "age": "30", "secret": "none", "public_info": float("nan"), "occupation": None},
        {"agent_id": "A2", "first_name": "Bob", "last_name": "Day", "secret": "Is late."},
    ]
    scenarios = [
        {"env_id": f"E{n}", "scenario": "They meet.", "agent_goals": ["Sit.", "Stand."], "relationship": n, "occupation_constraint": "nan"}
        for n in range(3)
    ]
    combos = [{"combo_id": f"C{n}", "env_id": f"E{n}", "agent_ids": ["A1", "A2"]} for n in range(3)]
    for name, records in ((CHARACTERS, people), (SCENARIOS, scenarios), (COMBINATIONS, combos)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / USED).write_text(
        json.dumps({"sotopia_env": ["E0", "E1"], "sotopia_hard_env": ["E1"], "SFT-round-1": ["E2"], "dev-round-1": ["E2"], "selftrain-round-2": []})
    )
    return tmp_path


def test_absent_fields_and_lists(folder):
    everything = combinations(folder, "all")
    ann, bob = everything[0].characters
    assert (ann.name, ann.age, ann.secret, ann.public_info, ann.occupation) == ("Ann", 30, "", "", "")
    assert ann.own_background() == "Ann is a 30-year-old." and bob.own_background() == "Bob Day. Bob's secrets: Is late."
    assert [c.scenario.relationship for c in everything] == [Relationship.STRANGER, Relationship.KNOWN_BY_NAME]
    assert [[c.id for c in combinations(folder, split)] for split in ("hard", "train", "dev")] == [["C1"], ["C2"], ["C2"]]
    assert loader.combination(folder, "C2").scenario.id == "E2"
    with pytest.raises(UserError, match="no combination 'C9'"):
        loader.combination(folder, "C9")


def test_without_the_list_all_are_all(folder):
    (folder / USED).unlink()
    assert len(combinations(folder, "all")) == 3
    with pytest.raises(UserError, match="cannot be read"):
        combinations(folder, "hard")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (SCENARIOS, None, "cannot be read"),
        (SCENARIOS, "", "is empty"),
        (SCENARIOS, "{", "line 1 cannot be read"),
        (SCENARIOS, "[1]", "no JSON object"),
        (SCENARIOS, "[" * 100_000, "line 1 cannot be read"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "x", "agent_goals": ["a", "b"]}', "'relationship' is missing"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "x", "agent_goals": ["a", "b"], "relationship": 6}', "from 0 .* to 5"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "x", "agent_goals": ["a", "b"], "relationship": "close"}', "from 0 .* to 5"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "x", "agent_goals": ["a", "b"], "relationship": true}', "relationship is True"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "x", "agent_goals": ["a"], "relationship": 0}', "two goals"),
        (SCENARIOS, '{"env_id": "E0", "scenario": "nan", "agent_goals": ["a", "b"], "relationship": 0}', "scenario is absent"),
        (SCENARIOS, '{"env_id": "E0", "scenario": 5, "agent_goals": ["a", "b"], "relationship": 0}', "5 is no text"),
        (CHARACTERS, '{"agent_id": "../x", "first_name": "Ann"}', "is no id"),
        (CHARACTERS, '{"agent_id": "A1", "first_name": "none"}', "first_name is absent"),
        (CHARACTERS, b"\xff\xfe", "no UTF-8"),
        (COMBINATIONS, '{"combo_id": "C0", "env_id": "E0", "agent_ids": ["A1"]}', "two characters"),
        (COMBINATIONS, '{"combo_id": "C0", "env_id": "E0", "agent_ids": ["A1", "A9"]}', "there is no 'A9'"),
        (COMBINATIONS, '{"combo_id": "C0", "env_id": "A1", "agent_ids": ["A1", "A2"]}', "'A1' is missing or unknown"),
        (COMBINATIONS, '{"combo_id": "C0", "env_id": "E0", "agent_ids": [["A1"], "A2"]}', "line 1 cannot be read"),
        (COMBINATIONS, '{"combo_id": "C0", "env_id": "E0", "agent_ids": ["A1", "A2"]}\n' * 2, "twice"),
        (loader.RELATIONSHIPS, '{"relationship": "9"}', "from 0 .* to 5"),
        (USED, "{", "is no JSON"),
        (USED, '{"sotopia_env": 3}', "lists of scenario ids"),
    ],
)
def test_damaged_files(folder, file, content, words):
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as raised:
        combinations(folder, "hard")
    assert "\n" not in str(raised.value)


def test_no_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SOTOPIA_DATA", raising=False)
    with pytest.raises(UserError, match="set SOTOPIA_DATA"):
        combinations(None, "all")
    with pytest.raises(UserError, match="is no folder"):
        combinations(tmp_path / "nowhere", "all")
