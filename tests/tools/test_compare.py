"""The learning table: what is run and what is skipped, and the document against figures known beforehand. No run is started."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

from tools import compare
from epo_jax.trajectory import Trajectory, write_jsonl

BUDGET = compare.Budget(rounds=2, episodes=16, tasks=4)


def finished_run(method: compare.Method, seed: int, output: pathlib.Path, before: list[int], after: list[int], **changes) -> None:
    """The folder that a run of this method leaves, with so many households and goals won on four tasks of each environment."""
    folder = compare.folder_of(method, seed, output)
    for number, wins in ((0, before), (2, after)):
        episodes = [
            Trajectory(environment, f"{environment}/{task}", success=task < count, outcome=float(task < count))
            for environment, count in zip(("alfworld", "webshop"), wins, strict=True)
            for task in range(4)
        ]
        write_jsonl(folder / "evaluation" / f"round_{number:03d}.jsonl", episodes)
    config = {"rounds": 2, "rollout.episodes": 16, "stepagent.experts": 16, "evaluate.tasks": 4, "learn_from": "rounds"} | changes
    (folder / "config.json").write_text(json.dumps(config))
    steps = [{"kind": "step", "step": step, "read_tokens": 2500.0, "time": 1_000_000_120.0} for step in (1, 2, 2)]  # the second was taken again
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (folder / "provenance.jsonl").write_text(json.dumps({"time": "2001-09-09T01:46:40+0000"}) + "\n")
    (folder / "strategist").mkdir()
    (folder / "strategist" / "config.json").write_text("{}")


def method(name: str) -> compare.Method:
    return next(each for each in compare.METHODS if each.name == name)


def test_the_table_says_what_was_recorded(tmp_path: pathlib.Path) -> None:
    for seed, after in enumerate(([3, 1], [4, 2])):
        finished_run(method("grpo"), seed, tmp_path, [1, 1], after)
    finished_run(method("ppo"), 0, tmp_path, [1, 1], [4, 4], **{"rounds": 3})  # of another budget
    document = tmp_path / "docs" / "learning.md"
    compare.write(document, tmp_path, BUDGET)
    text = document.read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `grpo`")]
    # Households: task 0 stays won; 1 and 2 are won by both seeds, 3 by one: +0, +1, +1, +0.5.
    assert row.startswith("| `grpo` | 2 | 5 | 25.0 → 87.5 (+62.5 [")
    assert "| 25.0 → 37.5 (+12.5 [" in row and "| 0.250 → 0.375 (+0.125 [" in row
    assert "2.0 minutes" in text and "32 in all" in text
    pending = next(line for line in text.splitlines() if line.startswith("Not finished"))
    assert "`ppo`" in pending and "`grpo`" not in pending


def test_what_came_out_is_what_the_intervals_say(tmp_path: pathlib.Path) -> None:
    rows = {"none": ([1, 1], [1, 1]), "epo": ([1, 1], [1, 4]), "grpo": ([0, 1], [4, 1]), "reinforce": ([4, 4], [0, 4])}
    rows["stepagent_implicit"] = ([0, 0], [4, 4])
    for name, (before, after) in rows.items():
        finished_run(method(name), 0, tmp_path, before, after)
    compare.write(tmp_path / "t.md", tmp_path, BUDGET)
    households, goals, _ = [line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("- ")]
    assert households == (
        "- ALFWorld success: rose: `grpo`, StepAgent implicit; fell: `reinforce`; ended above `epo` as published: `grpo`; ended below it: none."
    )  # one of four lost to epo's one of four: the interval holds 0
    assert goals.startswith("- WebShop success: rose: `epo` as published, StepAgent implicit; fell: none; ended above `epo` as published: none;")
    assert goals.endswith("ended below it: `grpo`.")


def test_finished_rows_are_skipped_and_failures_do_not_stop_the_others(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
    started: list[str] = []

    def fake(command, **_) -> subprocess.CompletedProcess:
        folder = next(part for part in command if part.startswith("--config.workdir=")).partition("=")[2]
        started.append(pathlib.Path(folder).name)
        if "ppo" in folder:
            return subprocess.CompletedProcess(command, 2)
        name, _, seed = pathlib.Path(folder).name.partition("-seed")
        finished_run(method(name), int(seed or 0), tmp_path, [1, 1], [2, 2])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake)
    arguments = ["--methods=none,ppo,epo", "--seeds=0,1", "--rounds=2", "--episodes=16", "--tasks=4"]
    arguments += [f"--output={tmp_path}", f"--document={tmp_path}/t.md"]
    assert compare.main(arguments) == 1
    assert started == ["none", "epo-seed0", "ppo-seed0", "epo-seed1", "ppo-seed1"]
    assert "ppo, seed 0; ppo, seed 1" in capsys.readouterr().err
    started.clear()
    assert compare.main(arguments) == 1
    assert started == ["ppo-seed0", "ppo-seed1"]
    assert compare.main([*arguments, "--write"]) == 0 and len(started) == 2


def test_every_method_gets_the_same_episodes() -> None:
    for each in compare.METHODS:
        changes = BUDGET.changes(each)
        episodes = changes["stepagent.experts" if each.agent else "rollout.episodes"]
        assert changes["rounds"] * episodes == (0 if each.name == "none" else 32)
        assert changes["evaluate.tasks"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--methods=grop"], "no method 'grop'"), (["--seeds=one"], "whole numbers"), (["--episodes=12"], "multiple of 8"), (["--write"], "no row")],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str, tmp_path: pathlib.Path, capsys) -> None:
    assert compare.main([*arguments, f"--output={tmp_path}"]) == 2
    assert words in capsys.readouterr().err
