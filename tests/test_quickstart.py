"""The notebook as a reader runs it: cell by cell, in a kernel of its own, in a copy of the clone."""

from __future__ import annotations

import pathlib
import shutil

import nbclient
import nbformat
import pytest

from tests.tiny_run import metrics

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
SECONDS = 3600  # of a cell; a machine that others use too may give it a twentieth of a core


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


@pytest.mark.slow
def test_every_cell_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "envs", "epo_jax", "examples"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    for name in ("XLA_FLAGS", "PYTHONPATH", "ALFWORLD_DATA", "WEBSHOP_DATA"):  # as a reader's kernel has none of them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "examples")}})
    client.execute()  # raises where a cell does
    run = tmp_path / "runs" / "quickstart"
    told = {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}
    printed = list(told.values())
    assert "no problem was found" in printed[1] and "done: the strategist is in" in printed[2]
    assert printed[3].count("round ") == 2 and printed[3].count("held out, after") == 2
    assert "advantage" in printed[4] and f"{run}/page.html" in printed[5] and (run / "page.html").is_file()
    assert printed[6].count("\n  > ") in range(1, 9)
    rounds = metrics(run, "round")
    assert [row["episodes"] for row in rounds] == [36, 36] and all(row["logprob_gap"] < 1e-4 for row in rounds)
