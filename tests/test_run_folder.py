"""A folder belongs to one configuration, and nothing is overwritten."""

from __future__ import annotations

import json

import pytest

from configs.alfshop import get_config
from epo_jax.errors import UserError
from epo_jax.run_folder import RunFolder


def _config(folder, **changes):
    config = get_config()
    config.workdir = str(folder)
    config.update_from_flattened_dict(changes)
    return config


def test_same_configuration_continues(tmp_path):
    assert not RunFolder.open(_config(tmp_path / "run")).resumed
    again = RunFolder.open(_config(tmp_path / "run", rounds=99))  # more rounds are allowed
    assert again.resumed
    assert len((tmp_path / "run" / "provenance.jsonl").read_text().splitlines()) == 2


def test_what_a_killed_start_was_writing_is_swept_away(tmp_path):
    run = RunFolder.open(_config(tmp_path / "run"))
    scratch, whole = run.path / "trajectories" / ".round_000.jsonl.123.partial", run.trajectories(0)
    scratch.write_text('{"half'), whole.write_text("")
    RunFolder.open(_config(tmp_path / "run"))
    assert not scratch.exists() and whole.exists()


def test_another_configuration_is_refused_and_named(tmp_path):
    RunFolder.open(_config(tmp_path / "run"))
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"learn\.learning_rate=.*not 0\.5.*--config\.workdir"):
        RunFolder.open(_config(tmp_path / "run", **{"learn.learning_rate": 0.5}))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(UserError, match="not empty"):
        RunFolder.open(_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_configuration_is_told(tmp_path):
    RunFolder.open(_config(tmp_path / "run"))
    (tmp_path / "run" / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="damaged"):
        RunFolder.open(_config(tmp_path / "run"))


def test_provenance_says_how_it_came_about(tmp_path):
    RunFolder.open(_config(tmp_path / "run"))
    row = json.loads((tmp_path / "run" / "provenance.jsonl").read_text())
    assert row["seed"] == 0 and {"jax", "flax", "orbax-checkpoint"} <= row["versions"].keys() and row["devices"]
