"""tools/play.py in SOTOPIA, as a program and a person use it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments: str, given: str = "", data: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "SOTOPIA_DATA"}
    if data is not None:
        environment["SOTOPIA_DATA"] = str(data)
    command = [sys.executable, str(REPOSITORY / "tools" / "play.py"), "--env=sotopia", *arguments]
    return subprocess.run(command, input=given, text=True, capture_output=True, timeout=120, env=environment)


def test_a_program_plays():
    outcome = run("--json", given='hold at 90\n{"action_type": "speak", "argument": "I offer price $70."}\n{"oops\nwalk away\nhold\n')
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.returncode == 0 and len(lines) == 6
    assert all(list(line) == ["observation", "admissible", "reward", "done", "success"] for line in lines)
    assert lines[0]["observation"].startswith("Here is the context of this interaction:") and lines[0]["admissible"] == ["<words>"]
    assert "I offer price $90." in lines[1]["observation"] and "I offer price $70." in lines[2]["observation"]
    assert lines[3]["observation"].startswith("That was no action:")
    assert "left the conversation" in lines[4]["observation"] and lines[4]["done"] and lines[5]["done"] and lines[5]["admissible"] == []


def test_a_person_plays():
    outcome = run("--task=generated:eval/2/1", given="?\naim high\nwalk away\n")
    assert outcome.returncode == 0 and "<words>" in outcome.stdout
    assert "left the conversation" in outcome.stdout and outcome.stdout.rstrip().endswith("The game is over.")


def test_a_real_combination(sotopia_files):
    first = json.loads(run("--split=hard", "--task=3/1", "--json", data=sotopia_files).stdout)
    assert "'s goal: Unknown" in first["observation"] and "Turn #0: " in first["observation"]


@pytest.fixture
def sotopia_files(shared) -> pathlib.Path:
    return shared / "data" / "sotopia"


def test_without_the_files():
    outcome = run("--split=hard")
    assert outcome.returncode == 2 and "set SOTOPIA_DATA" in outcome.stderr and outcome.stdout == ""
