"""The figures of a round by hand, and the file they are written to."""

from __future__ import annotations

import errno
import json
import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from epo_jax.errors import UserError
from epo_jax.report.metrics import MetricsWriter, describe, describe_each, repeated_token_share
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


def test_each_environment_has_its_own_figures():
    played = [
        Trajectory("alfworld", "a", outcome=1.0, success=True),
        Trajectory("webshop", "a", outcome=0.5, extra={"bought": True}),
        Trajectory("webshop", "b", outcome=0.0, extra={"bought": False}),
    ]
    values = describe_each(played)
    assert values["episodes"] == 3 and values["alfworld/episodes"] == 1 and values["webshop/episodes"] == 2
    assert (values["reward"], values["alfworld/reward"], values["webshop/reward"]) == (0.5, 1.0, 0.25)
    assert values["bought"] == values["webshop/bought"] == 0.5 and math.isnan(values["alfworld/bought"])


def test_every_reader_can_parse_the_file(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    writer.write("round", 1, {"success": 0.5, "gap": math.nan})
    writer.write("round", 2, {"success": 0.75, "gap": 1e-6})
    writer.close()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["success"], row["gap"]) for row in rows] == [(1, 0.5, None), (2, 0.75, 1e-6)]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert list(scalars(events.read_bytes())) == [("round/success", 1, 0.5), ("round/success", 2, 0.75), ("round/gap", 2, pytest.approx(1e-6))]


def test_what_a_killed_process_left_of_a_line_is_cut_off(tmp_path):
    MetricsWriter(tmp_path, tensorboard=False).write("round", 1, {"success": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "rou')
    MetricsWriter(tmp_path, tensorboard=False).write("round", 2, {"success": 0.75})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def scalars(data: bytes):
    """(tag, step, value) of each scalar in a TensorBoard file: records of length (8 bytes), checksum (4), event, checksum (4)."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device; make room"):
        writer.write("round", 1, {"success": 0.5})
