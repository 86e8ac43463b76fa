"""A run's episodes as conversations: which ones, with what scores, and back again."""

from __future__ import annotations

import json

import pytest

from epo_jax.errors import UserError
from epo_jax.published import read_published
from epo_jax.trajectory import Trajectory, Turn, write_jsonl
from tools.export_conversations import export, main


def episode(index: int, advantages: list[float | None], **more) -> Trajectory:
    turns = [Turn(prompt_tokens=[1], tokens=[2], strategy=f"go to desk {turn}", observation=f"desk {turn}", advantage=a) for turn, a in enumerate(advantages)]
    messages = [{"role": "user", "content": "rules"}, {"role": "assistant", "content": "OK"}, {"role": "user", "content": f"task {index}"}]
    return Trajectory("alfworld", str(index), turns=turns, extra={"index": index, "messages": messages, "replies": [f"go\n{turn.observation}" for turn in turns]}, **more)


@pytest.fixture
def run(tmp_path):
    write_jsonl(tmp_path / "run" / "trajectories" / "round_000.jsonl", [episode(0, [1 / 3, -2e-17]), episode(1, [0.5], masked="actor failed"), episode(2, [])])
    write_jsonl(tmp_path / "run" / "trajectories" / "round_001.jsonl", [episode(3, [0.25]), episode(4, [None, None])])
    return tmp_path / "run"


def test_every_credited_episode_is_written_as_it_was_read_and_said(run, tmp_path, capsys):
    assert main([f"--run={run}", f"--output={tmp_path}/all.json"]) == 0
    assert "2 conversations from 2 rounds; left out 1 masked and 2 without advantages" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "all.json").read_text())
    assert first["conversations"] == [
        {"from": "human", "value": "rules"}, {"from": "gpt", "value": "OK"}, {"from": "human", "value": "task 0"},
        {"from": "gpt", "value": "go to desk 0", "score": "0.3333333333333333"}, {"from": "human", "value": "go\ndesk 0"},
        {"from": "gpt", "value": "go to desk 1", "score": "-2e-17"}, {"from": "human", "value": "go\ndesk 1"},
    ]  # fmt: skip
    back = read_published(tmp_path / "all.json", scored=True)
    assert [[turn.advantage for turn in trajectory.turns] for trajectory in back.trajectories] == [[1 / 3, -2e-17], [0.25]]
    assert second["conversations"][2]["value"] == "task 3"


def test_one_round(run, tmp_path):
    assert "1 conversations from 1 round;" in export(run, tmp_path / "two.json", round=2)
    with pytest.raises(UserError, match="no round 3"):
        export(run, tmp_path / "three.json", round=3)


def test_what_cannot_be_exported_is_told(run, tmp_path, capsys):
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export(run, tmp_path / "there.json")
    assert main([f"--run={tmp_path}/none", f"--output={tmp_path}/x.json"]) == 2
    assert "there are no trajectories in" in capsys.readouterr().err
    write_jsonl(run / "trajectories" / "round_000.jsonl", [episode(0, [None])])
    with pytest.raises(UserError, match="has advantages"):
        export(run, tmp_path / "x.json", round=1)
    assert not (tmp_path / "x.json").exists()
