"""tools/play.py in the shop, as a program uses it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments: str, given: str = "", data: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "WEBSHOP_DATA"}
    if data is not None:
        environment["WEBSHOP_DATA"] = str(data)
    command = [sys.executable, str(REPOSITORY / "tools" / "play.py"), "--env=webshop", *arguments]
    return subprocess.run(command, input=given, text=True, capture_output=True, timeout=60, env=environment)


def test_the_project_s_own_shop():
    outcome = run("--task=3", "--json", given="search[shoes]\nnonsense\n")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.returncode == 0 and len(lines) == 3
    assert all(list(line) == ["observation", "admissible", "reward", "done", "success", "bought"] for line in lines)
    assert lines[0]["admissible"] == ["search[<query>]"] and lines[1] == lines[2]
    assert run("--task=generated:eval/3", "--json").stdout.splitlines()[0] == outcome.stdout.splitlines()[0]


def test_the_original_s_goal_by_its_number(webshop_files, transcript):
    """One recorded episode, whose pages do not depend on the price limit's draw, up to its first search."""
    outcome = run(f"--task={transcript['goal_index']}", "--json", data=webshop_files)
    first = json.loads(outcome.stdout)
    assert first["observation"].partition(", and price")[0] == transcript["reset"].partition(", and price")[0]
    human = json.loads(run("--task=3", "--goals=human", "--json", data=webshop_files).stdout)
    assert human == json.loads(run("--task=human/3", "--json", data=webshop_files).stdout)


@pytest.fixture
def webshop_files(shared) -> pathlib.Path:
    return shared / "data" / "webshop"


@pytest.fixture
def transcript(shared) -> dict:
    import gzip

    with gzip.open(shared / "reference" / "webshop_transcripts.jsonl.gz", "rt") as file:
        return json.loads(file.readline())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--goals=human", "--task=1"], "set WEBSHOP_DATA"),
        (["--goals=all", "--task=1"], "--goals is synthetic or human"),
        (["--goals=human", "--split=test"], "instead of --split"),
        (["--task=99999"], "numbered from 0"),
        (["--game=x"], "no game files"),
    ],
)
def test_wrong_arguments_exit_with_two_and_a_sentence(arguments, words):
    outcome = run(*arguments)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert words in outcome.stderr and "Traceback" not in outcome.stderr


def test_starts_without_jax():
    code = "import sys, runpy; sys.argv = ['play.py', '--env=webshop', '--json']\n"
    code += f"try: runpy.run_path({str(REPOSITORY / 'tools' / 'play.py')!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert not {'jax', 'torch', 'spacy'} & set(sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr.decode()
