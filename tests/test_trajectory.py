"""Trajectories are read back unchanged and survive a killed writer."""

from __future__ import annotations

import math
import os
import random
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from epo_jax import trajectory as t
from epo_jax.errors import UserError


def example(seed: int) -> t.Trajectory:
    chooser = random.Random(seed)
    turns = []
    for _ in range(chooser.randint(1, 5)):
        count = chooser.randint(1, 9)
        turns.append(
            t.Turn(
                prompt_tokens=[chooser.randrange(50_000) for _ in range(chooser.randint(1, 20))],
                tokens=[chooser.randrange(50_000) for _ in range(count)],
                logprobs=[-chooser.random() * 10 ** chooser.randint(-12, 3) for _ in range(count)],
                strategy=chooser.choice(["Thought: go", "new\nline \"quoted\" \\ back", "é 日本 😀 \u2028 \x00", "\ud800 lone"]),
                action="go to desk 1",
                observation=chooser.choice(["", "You see\r\n nothing."]),
                reward=chooser.random(),
                progress=chooser.choice([None, chooser.random()]),
                process_reward=chooser.choice([None, 1.0]),
                advantage=chooser.choice([None, chooser.gauss(0, 1), 0.1 + 0.2]),
                stop_reason=chooser.choice(["stop", "length"]),
            )
        )
    return t.Trajectory(
        environment="alfworld", task_id=f"generated:train/{seed}", turns=turns, first_observation="You are in a room.", outcome=chooser.random(),
        success=chooser.random() < 0.5, end=chooser.choice(["done", "error: the actor timed out"]), masked=chooser.choice([None, "judge failed"]),
        round=seed, weights_version="3", actor="literal", judge=chooser.choice([None, "progress"]), seed=2**63 - 1 - seed, temperature=0.7,
        start_progress=1 / 3, extra={"messages": [{"role": "user", "content": "hi"}], "nested": {"x": [1, None, True]}},
    )  # fmt: skip


def test_read_back_unchanged(tmp_path):
    originals = [example(seed) for seed in range(50)]
    t.write_jsonl(tmp_path / "a.jsonl", originals)
    again = t.read_jsonl(tmp_path / "a.jsonl")
    assert again == originals and again.dropped == 0
    assert len((tmp_path / "a.jsonl").read_bytes().split(b"\n")) == 51  # one line an episode, whatever its texts hold
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_every_float_is_read_back_bit_for_bit(tmp_path):
    chooser = random.Random(0)
    floats = [0.0, -0.0, 5e-324, sys.float_info.max, 0.1, 1 / 3, -math.inf]
    while len(floats) < 2000:
        value = struct.unpack("<d", chooser.randbytes(8))[0]
        if not math.isnan(value):
            floats.append(value)
    floats += np.asarray(np.random.default_rng(0).normal(size=500), np.float32).tolist()
    original = t.Trajectory("e", "x", turns=[t.Turn(tokens=[1] * len(floats), logprobs=floats)])
    t.write_jsonl(tmp_path / "a.jsonl", [original])
    back = t.read_jsonl(tmp_path / "a.jsonl")[0].turns[0].logprobs
    assert [struct.pack("<d", value) for value in back] == [struct.pack("<d", value) for value in floats]


def test_token_stream():
    trajectory = t.Trajectory("e", "x", turns=[t.Turn(prompt_tokens=[1, 2], tokens=[3]), t.Turn(prompt_tokens=[4], tokens=[5, 6])])
    assert trajectory.tokens == [1, 2, 3, 4, 5, 6]


def test_numpy_scalars_become_numbers_and_other_objects_are_refused(tmp_path):
    trajectory = t.Trajectory("e", "x", turns=[t.Turn(tokens=[np.int32(7)], logprobs=[np.float32(-0.25)])])
    t.write_jsonl(tmp_path / "a.jsonl", [trajectory])
    turn = t.read_jsonl(tmp_path / "a.jsonl")[0].turns[0]
    assert turn.tokens == [7] and turn.logprobs == [-0.25] and type(turn.tokens[0]) is int
    with pytest.raises(UserError, match="task 'bad'"):
        t.append_jsonl(tmp_path / "a.jsonl", t.Trajectory("e", "bad", extra={"what": object()}))
    assert len(t.read_jsonl(tmp_path / "a.jsonl")) == 1


def test_append(tmp_path):
    path = tmp_path / "folder" / "a.jsonl"
    for seed in range(3):
        t.append_jsonl(path, example(seed))
    t.append_jsonl(path, [example(3), example(4)])
    assert t.read_jsonl(path) == [example(seed) for seed in range(5)]


@pytest.mark.parametrize("kept", [1, 10, -2, -1])
def test_a_torn_last_line_is_dropped_counted_and_mended(tmp_path, kept):
    path = tmp_path / "a.jsonl"
    t.write_jsonl(path, [example(0), example(1)])
    line = t.encode_line(example(2))
    with open(path, "ab") as file:
        file.write(line[:kept])
    torn = t.read_jsonl(path)
    assert torn == [example(0), example(1)] and torn.dropped == 1
    t.append_jsonl(path, example(3))
    mended = t.read_jsonl(path)
    assert mended == [example(0), example(1), example(3)] and mended.dropped == 0


def test_a_file_with_only_a_torn_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(t.encode_line(example(0))[:200_000][:-1])
    assert t.read_jsonl(path) == [] and t.read_jsonl(path).dropped == 1
    t.append_jsonl(path, example(1))
    assert t.read_jsonl(path) == [example(1)]


def test_a_killed_writer_leaves_a_readable_file(tmp_path):
    path = tmp_path / "a.jsonl"
    program = (
        "import sys; from epo_jax import trajectory as t\n"
        "big = t.Trajectory('e', 'x', turns=[t.Turn(tokens=list(range(20000)), logprobs=[-0.5] * 20000)])\n"
        "while True: t.append_jsonl(sys.argv[1], big)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=os.path.dirname(os.path.dirname(t.__file__)))
    try:
        for _ in range(1000):
            if path.exists() and path.stat().st_size > 500_000:
                break
            try:
                writer.wait(0.02)
                pytest.fail("the writer ended by itself")
            except subprocess.TimeoutExpired:
                pass
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    read = t.read_jsonl(path)
    assert len(read) >= 2 and all(len(trajectory.tokens) == 20_000 for trajectory in read)


def test_a_full_disk_while_appending_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    t.append_jsonl(path, example(0))
    real_write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        return real_write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(UserError, match="No space left"):
        t.append_jsonl(path, example(1))
    monkeypatch.undo()
    assert t.read_jsonl(path) == [example(0)] and t.read_jsonl(path).dropped == 0


def test_damage_that_is_no_torn_line_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    good = t.encode_line(example(0))
    for damaged, words in [
        (b'{"environment": "x"}\n', "task_id"),
        (b"not json\n", "line 2"),
        (b'{"environment": "x", "task_id": "y", "colour": 1}\n', "colour"),
        (b'{"environment": "x", "task_id": "y", "turns": [{"tokens": [1], "logprobs": [1.0, 2.0]}]}\n', "log-prob"),
        (b'{"environment": "x", "task_id": "y", "turns": [{"stop_reason": "bored"}]}\n', "stop_reason"),
        (b"[]\n", "not a JSON object"),
    ]:
        path.write_bytes(good + damaged + good)
        with pytest.raises(UserError, match=words):
            t.read_jsonl(path)
    with pytest.raises(UserError, match="cannot read"):
        t.read_jsonl(tmp_path / "absent.jsonl")
