"""tools/plan.py as a command: what it says of a small model, and of what it cannot plan."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.mesh import AXES
from tools import plan as plan_tool
from tools.planning import table
from tools.planning.chips import topology

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/alfshop.py"
SMALL = (CONFIG, "--config.learn.max_length=256", "--config.learn.length_buckets=(256,)", "--config.rollout.max_context=256", "--config.rollout.slots=4")


def plan(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "tools/plan.py", *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_a_mistake_is_one_sentence() -> None:
    done = plan(CONFIG, "--topology=v7:2x2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no chip 'v7'" in done.stderr


def test_whose_sizes_they_are(tmp_path) -> None:
    config = get_defaults()
    assert plan_tool.model_of(config, "").num_layers == plan_tool.model_of(config, "epo_jax/model/mini").num_layers
    assert plan_tool.model_of(config, "llama-3-8b").hidden_size == 4096
    for content, sentence in (("[1]", "no JSON object"), ("{", "is not a config.json"), ('{"model_type": "gpt2"}', "gpt2")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            plan_tool.model_of(config, str(tmp_path))
    with pytest.raises(UserError, match="no sizes of a model at llama-9"):
        plan_tool.model_of(config, "llama-9")


@pytest.mark.parametrize(
    ("chips", "asked", "found"),
    [
        ("h100:8", "config", {"fsdp": 8}),
        ("h100:8", "tensor=2,data=-1", {"data": 4, "tensor": 2}),
        ("h100:8", "fsdp", "--mesh=fsdp is no mesh"),
        ("h100:8", "fsdp=x", "--mesh=fsdp=x is no mesh"),
        ("h100:8", "fsdp=3", "needs 3 devices"),
        ("h100:16", "tensor=16,data=1", "does not divide the model"),
        ("h100:3", "auto", "no mesh of 3 chips"),
    ],
)
def test_meshes_that_are_asked_for(chips, asked, found) -> None:
    config = get_defaults()
    model = plan_tool.model_of(config, "llama-3-8b")
    if isinstance(found, dict):
        assert plan_tool.shapes_of(config, model, topology(chips), asked) == [dict.fromkeys(AXES, 1) | found]
    else:
        with pytest.raises(UserError, match=found):
            plan_tool.shapes_of(config, model, topology(chips), asked)


def test_a_cell_that_the_table_does_not_have() -> None:
    with pytest.raises(UserError, match="none of the cells"):
        table.fill(["llama-9/v5e-16"], ["pass"])


@pytest.mark.slow
def test_a_small_model_on_simulated_devices(tmp_path) -> None:
    """The mini strategist on four; the state it reports is what float32 masters, gradient and moments take, split in four."""
    path = tmp_path / "plan.json"
    done = plan(*SMALL, "--topology=h100:4", "--mesh=fsdp=2,tensor=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "ESTIMATE" in done.stdout and done.stdout.count("fits") == 3
    (found,) = json.loads(path.read_text())
    assert set(found["programs"]) == {"pass", "update", "decode"} and found["rows"] == 4
    update, one = found["programs"]["update"], found["programs"]["pass"]
    assert update["arguments"] == pytest.approx(16 * found["parameters"] / 4, rel=0.02)
    assert one["beside"] == pytest.approx(8 * found["parameters"] / 4, rel=0.02)
    assert one["peak"] > one["beside"] + one["arguments"]
    assert one["collectives"]["all-reduce"][0] >= 4  # the tensor axis sums twice a layer, forward and backward
    again = plan(*SMALL, "--topology=h100:4", "--mesh=fsdp=2,tensor=2", f"--json={path}")
    assert again.returncode == 0 and "compiling" not in again.stderr and again.stdout == done.stdout


@pytest.mark.slow
def test_each_machine_of_a_slice_plays_by_itself(tmp_path) -> None:
    """Sixteen chips learn together; four play, so a chip holds a quarter of the weights for playing and a sixteenth of the learner's state."""
    path = tmp_path / "plan.json"
    done = plan(*SMALL, "--topology=v5e-16", "--mesh=fsdp=16", "--estimate", "--programs=decode", "--config.rollout.weights=bfloat16", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "16 chips in 4 processes (fsdp 16)" in done.stdout
    (found,) = json.loads(path.read_text())
    numbers, mini = found["parameters"], json.loads((REPOSITORY / "epo_jax/model/mini/config.json").read_text())
    layers = numbers - mini["vocab_size"] * mini["hidden_size"]  # prefill has layers of its own; the embedding is decode's too
    assert found["programs"]["decode"]["beside"] == pytest.approx(12 * numbers / 16 + 2 * layers / 4, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install "jax[tpu]"')
def test_a_small_model_on_tpus_that_are_not_there(tmp_path) -> None:
    done = plan(*SMALL, "--topology=v5e-4", "--mesh=fsdp=4", "--programs=pass", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    assert "ESTIMATE" not in done.stdout and "fits" in done.stdout
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert found["programs"]["pass"]["temporaries"] > 0 and found["programs"]["pass"]["collectives"]


def plan_with(*, sent: float, peak: float, rows: int = 1, programs=table.NEEDED, refused: str = "") -> dict:
    figures = {"peak": peak, "collectives": {"all-gather": [1, sent]}, "refused": refused}
    return {"programs": {name: figures for name in programs}, "rows": rows, "hbm": 10.0, "mesh": {"fsdp": 2}, "estimate": False}


def test_the_best_mesh_fits_and_sends_least_for_a_row() -> None:
    heavy, light, large = plan_with(sent=8, peak=9), plan_with(sent=12, peak=9.5, rows=2), plan_with(sent=1, peak=11)
    assert table.best([heavy, light, large]) is light
    assert table.best([large, plan_with(sent=9, peak=12)]) is large
    assert not table.fits(plan_with(sent=1, peak=1, refused="no room"))
    assert table.best([]) is None


def test_the_document_holds_the_table_that_its_cells_give() -> None:
    assert table.render() in (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
