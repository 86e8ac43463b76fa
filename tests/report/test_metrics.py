"""The figures of a round by hand, and the file they are written to."""

from __future__ import annotations

import json
import math

import pytest

from epo_jax.report.metrics import MetricsWriter, describe, repeated_token_share
from epo_jax.trajectory import Trajectory, Turn


def test_repeated_token_share():
    assert repeated_token_share([5, 6, 7]) == 0.0
    assert repeated_token_share([5, 5, 5, 5]) == pytest.approx(0.75)
    assert repeated_token_share([]) == 0.0


def test_describe_leaves_masked_episodes_out_and_counts_them():
    good = Trajectory(
        "alfworld",
        "a",
        turns=[
            Turn(tokens=[1, 2], logprobs=[-1.0, -3.0], strategy="x", advantage=0.5, progress=0.5),
            Turn(tokens=[3, 3, 3, 3], logprobs=[-2.0] * 4, strategy="y", advantage=0.0, progress=1.0, stop_reason="length"),
        ],
        outcome=1.0,
        success=True,
    )
    values = describe([good, Trajectory("alfworld", "b", turns=[Turn(tokens=[9] * 50)], masked="judge failed")])
    assert values["episodes"] == 2 and values["masked"] == 1
    assert values["success"] == values["reward"] == values["progress"] == 1.0
    assert values["strategy_tokens"] == 3.0
    assert values["strategies_cut_off"] == values["advantage_nonzero_share"] == 0.5
    assert values["repeated_token_share"] == pytest.approx(0.375)
    assert values["sampled_logprob"] == pytest.approx(-2.0)
    assert math.isnan(describe([])["success"])


def test_every_reader_can_parse_the_file(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    writer.write("round", 1, {"success": 0.5, "gap": math.nan})
    writer.write("round", 2, {"success": 0.75, "gap": 1e-6})
    writer.close()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["success"], row["gap"]) for row in rows] == [(1, 0.5, None), (2, 0.75, 1e-6)]
    assert any((tmp_path / "tensorboard").iterdir())
