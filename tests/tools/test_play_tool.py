"""tools/play.py as a person and as a program use it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.generator import generate_game

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments: str, given: bytes = b"", cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "ALFWORLD_DATA"}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "play.py"), *arguments],
        input=given, capture_output=True, timeout=60, env=environment, cwd=cwd,
    )  # fmt: skip


@pytest.fixture
def game_file(tmp_path) -> pathlib.Path:
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(generate_game(11, size="small")), encoding="utf-8")
    return path


def test_json_lines_say_what_the_engine_says(game_file, tmp_path):
    game = Game.load(game_file)
    engine = AlfworldEngine(game)
    actions = ["dance", "", *game.walkthrough]
    outcome = run("--env=alfworld", f"--game={game_file}", "--json", given="\n".join(actions).encode() + b"\n", cwd=tmp_path)
    assert outcome.returncode == 0 and outcome.stderr == b""
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert len(lines) == 1 + len(actions)
    assert all(list(line) == ["observation", "admissible", "reward", "done", "success"] for line in lines)
    first = {"observation": engine.reset(), "admissible": engine.admissible_commands(), "reward": 0.0}
    assert lines[0] == first | {"done": False, "success": False}
    for action, line in zip(actions, lines[1:]):
        assert line["observation"] == engine.step(action)
        assert line["admissible"] == engine.admissible_commands()
        assert line["done"] == line["success"] == engine.won == (line["reward"] == 1.0)
    assert lines[-1]["done"]


def test_actions_after_the_end_get_a_clear_answer(game_file):
    actions = [*Game.load(game_file).walkthrough, "look", "look"]
    lines = run("--env=alfworld", f"--game={game_file}", "--json", given="\n".join(actions).encode()).stdout.splitlines()
    for line in lines[-2:]:
        assert json.loads(line) == {
            "observation": "The game is over: no action changes it any more.",
            "admissible": [], "reward": 0.0, "done": True, "success": True,
        }  # fmt: skip


def test_bytes_that_are_no_text_are_one_more_invalid_action(game_file):
    outcome = run("--env=alfworld", f"--game={game_file}", "--json", given=b"\xff\xfe\r\nlook\r\n")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [line["observation"][:16] for line in lines[1:]] == ["Nothing happens.", "You are in the m"]


def test_the_same_task_by_id_number_and_default():
    by_id = run("--env=alfworld", "--task=generated:eval/0", "--json").stdout
    assert by_id.count(b"\n") == 1
    assert by_id == run("--env=alfworld", "--split=generated:eval", "--task=0", "--json").stdout
    assert by_id == run("--env=alfworld", "--json").stdout
    assert by_id != run("--env=alfworld", "--split=generated:train", "--json").stdout


def test_a_person_plays(game_file):
    game = Game.load(game_file)
    outcome = run("--env=alfworld", f"--game={game_file}", given=("?\n" + "\n".join(game.walkthrough) + "\n").encode())
    shown = outcome.stdout.decode()
    assert game.task in shown and "inventory" in shown and "You have won!" in shown
    assert run("--env=alfworld", f"--game={game_file}", given=b"quit\nlook\n").stdout.count(b"> ") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env=zork"], "use one of alfworld"),
        (["--env=alfworld", "--split=test"], "use one of train"),
        (["--env=alfworld", "--game=missing.tw-pddl"], "cannot be read"),
        (["--env=alfworld", "--game=."], "not a file"),
        (["--env=alfworld", "--split=train", "--task=3"], "alfworld-download"),
        (["--env=alfworld", "--split=generated:eval", "--game=x"], "leave --split out"),
        (["--env=alfworld", "--game=x", "--task=1"], "not allowed with"),
        ([], "--env"),
    ],
)
def test_wrong_arguments_exit_with_two_and_a_sentence(arguments, words, tmp_path):
    outcome = run(*arguments, cwd=tmp_path)
    assert outcome.returncode == 2 and outcome.stdout == b""
    assert words in outcome.stderr.decode() and b"Traceback" not in outcome.stderr


def test_starts_without_jax(game_file):
    code = f"import sys, runpy; sys.argv = ['play.py', '--env=alfworld', '--game={game_file}', '--json']\n"
    code += f"try: runpy.run_path({str(REPOSITORY / 'tools' / 'play.py')!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert not {'jax', 'numpy', 'torch'} & set(sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr.decode()
