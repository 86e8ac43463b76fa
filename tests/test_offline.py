"""The offline run with a tiny strategist: what it leaves, that it continues exactly, packed as padded, and how it refuses."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.offline import get_config
from epo_jax.errors import UserError
from epo_jax.interrupt import Stopped, StopRequest
from epo_jax.model import hf_weights
from epo_jax.offline import OfflineRun
from tests.tiny_run import MODEL, StopAfter

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TINY = MODEL | {
    "model.remat": "none",
    "model.architecture.vocab_size": 320,
    "learn.rows": 16,
    "learn.accumulation": 1,
    "learn.epochs": 2,
    "learn.learning_rate": 1e-2,
    "learn.max_length": 128,
    "learn.length_buckets": (128,),
    "checkpoint.every_steps": 0,
    "tensorboard": False,
    "compilation_cache": "none",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """40 conversations of one to four turns, with scores of both signs."""
    chooser = random.Random(0)
    rows = []
    for index in range(40):
        messages = [{"from": "human", "value": f"task {index}: find the mug"}]
        for turn in range(chooser.randint(1, 4)):
            messages.append({"from": "gpt", "value": f"go to cabinet {chooser.randint(1, 9)}", "score": str(round(chooser.uniform(-0.2, 1.0), 3))})
            messages.append({"from": "human", "value": f"you see cup {turn}"})
        rows.append({"conversations": messages[:-1]})
    path = tmp_path_factory.mktemp("data") / "conversations.json"
    path.write_text(json.dumps(rows))
    return path


def tiny(folder, path, /, **changes):
    config = get_config()
    config.workdir, config.data = str(folder), str(path)
    config.update_from_flattened_dict(TINY | changes)
    return config


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory) -> OfflineRun:
    run = OfflineRun(tiny(tmp_path_factory.mktemp("offline") / "run", data), StopRequest())
    run.everything()
    return run


def rows_of(run: OfflineRun, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_run_leaves_what_it_promises(unbroken, data):
    steps, passes = rows_of(unbroken, "step"), rows_of(unbroken, "pass")
    assert [row["step"] for row in steps] == list(range(1, 7))  # 40 conversations, 16 a step: 3 steps in each of 2 passes
    assert [row["trajectories"] for row in steps] == [16, 16, 8] * 2
    assert [row["step"] for row in passes] == [1, 2] and passes[1]["loss"] < passes[0]["loss"]
    assert 0 < passes[0]["padding_share"] < 1 and passes[0]["dropped_turns"] == 0
    assert json.loads((unbroken.folder.path / "data.json").read_text())["rows"] == 40
    config, params = hf_weights.load(unbroken.folder.export, unbroken.mesh, np.float32)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(unbroken.learner.state.params))


@pytest.mark.slow
def test_packed_and_stopped_on_the_way_it_takes_the_same_steps(unbroken, data, tmp_path):
    """Every step holds the conversations that the unbroken, padded run gave it: none is skipped or repeated, and each loss is the same."""

    config = tiny(tmp_path / "run", data, **{"learn.packing": True})
    with pytest.raises(Stopped):
        OfflineRun(config, StopAfter(5)).everything()  # in the middle of the second pass
    run = OfflineRun(config, StopRequest())
    assert (run.learner.position.round, run.learner.position.steps) == (1, 1)
    run.everything()
    ours, theirs = rows_of(run, "step"), rows_of(unbroken, "step")
    assert [row["step"] for row in ours] == list(range(1, 7))
    for name in ("loss", "grad_norm", "tokens", "trajectories", "read_tokens"):
        np.testing.assert_allclose([row[name] for row in ours], [row[name] for row in theirs], rtol=1e-3, err_msg=name)
    assert rows_of(run, "pass")[0]["padding_share"] < rows_of(unbroken, "pass")[0]["padding_share"]


def test_a_changed_file_is_not_continued_with(unbroken, data):
    content = data.read_bytes()
    data.write_bytes(content + b"\n")
    try:
        with pytest.raises(UserError, match="has changed since the run"):
            OfflineRun(tiny(unbroken.folder.path, data), StopRequest())
    finally:
        data.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": ""}, "--config.data="),
        ({"data": "nowhere.json"}, "cannot read conversations from nowhere.json"),
        ({"allow_malformed": "some"}, "allow_malformed"),
        ({"model.source": "weights/none"}, "no model weights at weights/none"),
        ({"learn.rows": 6}, r"learn\.rows is 6.*multiple of 8"),
        ({"learn.length_buckets": (64,)}, "do not reach"),
        ({"learn.overlong": "squeeze"}, "drop, split"),
        ({"learn.max_length": 8, "learn.length_buckets": (8,)}, "no conversation of .* fits into 8 tokens"),
    ],
)
def test_bad_configurations_are_told_before_anything_is_written(tmp_path, data, changes, words):
    with pytest.raises(UserError, match=words) as told:
        OfflineRun(tiny(tmp_path / "run", data, **changes), StopRequest())
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_main_command_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "half.json").write_text('[{"conversations": [{"from": "human", ')
    command = [sys.executable, "-m", "epo_jax.train", "--config=configs/offline.py", f"--config.data={tmp_path}/half.json", f"--config.workdir={tmp_path}/run"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as on a laptop
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 2 and "half.json is not JSON from line 1 on" in done.stderr and len(done.stderr.strip().splitlines()) == 1
