"""The tool that measures learning: its sides take the same steps, and its ratios are those of its figures."""

from __future__ import annotations

import json

import pytest

from tools import bench_learn


@pytest.mark.slow
def test_both_sides_take_the_same_steps(capfd: pytest.CaptureFixture) -> None:
    """The tool itself refuses to show anything where torch's loss differs in a step; later steps stand on the updates of earlier ones."""
    assert bench_learn.main(["--models=mini", "--dtypes=float32", "--sides=ours, remat full;torch, checkpointing", "--rows=2", "--length=256",
                             "--steps=2", "--json"]) == 0  # fmt: skip
    result = json.loads(capfd.readouterr().out)
    ours, theirs = result["results"]
    assert (ours["side"], theirs["side"]) == ("ours, remat full", "torch, checkpointing")
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6) and ours["tokens"] == theirs["tokens"] > 256
    assert ours["memory ÷ torch, checkpointing"] == ours["peak_mb"] / theirs["peak_mb"] > 0
    assert ours["speed ÷ torch, checkpointing"] > 0 and "speed ÷ torch, checkpointing" not in theirs


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--dtypes=float16"], "float16"), (["--sides=ours"], "remat"), pytest.param(["--models=/nowhere", "--quick"], "/nowhere", marks=pytest.mark.slow)],
)
def test_wrong_settings_are_told(capfd: pytest.CaptureFixture, arguments: list[str], word: str) -> None:
    assert bench_learn.main(arguments) == 2
    assert word in capfd.readouterr().err
