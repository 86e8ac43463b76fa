"""Judging again what only the judge failed on: the rest of the file stays as it was, bit for bit."""

from __future__ import annotations

import json
import os

import pytest

from configs.alfshop import get_config
from epo_jax.run_folder import flatten
from epo_jax.trajectory import Trajectory, Turn, read_jsonl, write_jsonl
from tests.api import scripted_server as give
from tests.api.scripted_server import ScriptedServer
from tools.judge import main


def episode(index, masked=None, **more):
    said = [f"Thought: {index}.{turn}" for turn in range(2)]
    turns = [Turn(prompt_tokens=[1], tokens=[2], logprobs=[-0.1], strategy=strategy, action="look", observation="desk") for strategy in said]
    return Trajectory("alfworld", str(index), turns=turns, first_observation="a room", masked=masked, extra={"index": index}, **more)


@pytest.fixture
def run(tmp_path):
    """Two rounds: a scored episode, one whose actor failed, three whose judge failed."""
    scored = episode(0, judge="openai:m", outcome=1.0)
    for turn in scored.turns:
        turn.process_reward, turn.advantage = 1.0, 0.5
    failed = "judge openai:m: m gave no answer in 6 tries"
    folder = tmp_path / "run"
    write_jsonl(folder / "trajectories" / "round_000.jsonl", [scored, episode(1, "actor failed: ApiError: no"), episode(2, failed), episode(3, failed)])
    write_jsonl(folder / "trajectories" / "round_001.jsonl", [episode(4, failed)])
    config = get_config("gpt")
    config.judge_api.model = "m"
    config.judge_api.concurrency = 1
    config.judge_api.retries = 0
    (folder / "config.json").write_text(json.dumps(flatten(config.to_dict())))
    return folder


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ScriptedServer() as server:
        server.otherwise = lambda body: give.good('{"indexes": [3], "reasoning": "it decided"}')
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def lines(path):
    return path.read_bytes().splitlines()


def test_only_what_the_judge_failed_on_is_judged(run, server, capsys):
    first, second = sorted((run / "trajectories").iterdir())
    before = lines(first)
    assert main([f"--run={run}", "--round=1"]) == 0
    assert "round_000.jsonl: judged 2 of 2 episodes" in capsys.readouterr().out
    after = lines(first)
    assert after[:2] == before[:2] and len(after) == 4
    for trajectory in read_jsonl(first)[2:]:
        assert trajectory.masked is None and trajectory.judge == "openai:m" and trajectory.extra["judge"] == {"reasoning": "it decided"}
        assert [turn.process_reward for turn in trajectory.turns] == [0.0, 1.0] and [turn.advantage for turn in trajectory.turns] == [None, None]
    assert read_jsonl(second)[0].masked and len(server.requests) == 2
    assert main([f"--run={run}"]) == 0
    out = capsys.readouterr().out
    assert "round_000.jsonl: 4 episodes, none that only its judge failed on" in out and "round_001.jsonl: judged 1 of 1" in out
    assert len(server.requests) == 3 and not [path for path in first.parent.iterdir() if "partial" in path.name]


def test_what_fails_again_stays_masked_and_is_asked_anew_next_time(run, server, capsys):
    server.then(*[give.good("no idea")] * 3)  # the first episode's three attempts
    assert main([f"--run={run}", "--round=1"]) == 0
    assert "judged 1 of 2 episodes that no judge had scored, 1 failed again" in capsys.readouterr().out
    masked = [t for t in read_jsonl(run / "trajectories" / "round_000.jsonl") if t.masked]
    assert [t.masked.partition(":")[0] for t in masked] == ["actor failed", "judge openai"] and "3 attempts" in masked[1].masked


def test_another_judge(run, server, capsys):
    server.otherwise = lambda body: give.good(json.dumps({"grades": [{"index": i, "grade": 8, "reason": "ok"} for i in (1, 3)]}))
    assert main([f"--run={run}", "--judge=graded", "--model=big"]) == 0
    trajectory = read_jsonl(run / "trajectories" / "round_001.jsonl")[0]
    assert trajectory.judge == "graded:big" and trajectory.extra["judge"]["grades"] == [8, 8] and server.requests[0].body["model"] == "big"


def test_a_key_that_does_not_do_leaves_everything_as_it_was(run, server, capsys):
    server.otherwise = lambda body: give.status(401, "no such key")
    before = [lines(path) for path in sorted((run / "trajectories").iterdir())]
    assert main([f"--run={run}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [lines(path) for path in sorted((run / "trajectories").iterdir())] == before


def test_a_file_that_changes_meanwhile_is_left_alone(run, server, capsys):
    path = run / "trajectories" / "round_001.jsonl"

    def touch(body):
        with open(path, "ab") as file:
            file.write(lines(path)[0] + b"\n")
        return give.good('{"indexes": [], "reasoning": "x"}')

    server.otherwise = touch
    assert main([f"--run={run}", "--round=2"]) == 2
    assert "changed while its episodes were judged" in capsys.readouterr().err and all(t.masked for t in read_jsonl(path))


@pytest.mark.parametrize(
    "arguments, words", [(["--run=nowhere"], "no run at nowhere"), (["--round=9"], "no round 9"), (["--judge=oracle"], "no judge 'oracle'")]
)
def test_mistakes_are_one_sentence(run, arguments, words, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert main([f"--run={run}", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and os.linesep in error
