"""What Weights & Biases gets: the names and numbers of metrics.jsonl, in one run over all starts; read back from wandb's own file."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from types import SimpleNamespace

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.report import wandb_run
from epo_jax.report.metrics import MetricsWriter


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_own"))
    config = get_defaults()
    config.wandb, config.tensorboard, config.workdir = "advice", False, str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    yield config
    wandb.teardown()


BLOCK = 32_768
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: pathlib.Path) -> list[Record]:
    """Of a .wandb file, which is a log of LevelDB behind seven bytes of its own: pieces of checksum (4 bytes), length (2), kind (1) and content, in
    blocks whose last few bytes, too few for a piece's head, are unused."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, parts, found = 7, b"", []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(parts))
    return found


def test_names_and_numbers_are_those_of_the_file(config, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    rows = [
        ("step", 1, {"loss": 0.25, "kl": math.nan}),
        ("round", 1, {"success": 0.5, "alfworld/success": 0.75, "note": "words"}),
        ("step", 2, {"loss": 0.125}),
        ("evaluation", 1, {"success": 1.0}),
    ]
    for start in (rows[:2], rows[2:]):  # a run that was stopped and continued
        writer = MetricsWriter.of_run(config, folder)
        for row in start:
            writer.write(*row)
        writer.close()
    wandb.teardown()  # its own process writes the files
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and (folder / "wandb_id").read_text() in files[0].name and (folder / "wandb_id").read_text() in files[1].name
    found = [record for file in files for record in records(file)]
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["_step"] for row in logged] == [1, 2, 3, 4]  # the second start does not write over the first
    told = [{name: value for name, value in row.items() if not name.startswith("_")} for row in logged]
    assert told == [
        {"step/loss": 0.25, "step/step": 1},
        {"round/success": 0.5, "round/alfworld/success": 0.75, "round/step": 1},
        {"step/loss": 0.125, "step/step": 2},
        {"evaluation/success": 1.0, "evaluation/step": 1},
    ]
    (begun, _) = (record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.display_name) == ("advice", "run")
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update if item.key}
    assert settings["learn.learning_rate"] == config.learn.learning_rate
    assert [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [kind for kind, _, _ in rows]


def test_without_the_package_it_is_one_sentence_and_nothing_is_written(config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install wandb"):
        MetricsWriter.of_run(config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    config.wandb = ""
    wandb_run.check(config)


def test_a_refusal_is_one_sentence(config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> SimpleNamespace:
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login(key=...)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb refuses: api_key not configured \(no-tty\)\. Call .* Log in with"):
        MetricsWriter.of_run(config, tmp_path / "run")
