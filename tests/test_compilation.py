"""The persistent compilation cache: programs come back, and no state of the folder is an error."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from epo_jax import compilation

hits = 0


def _count(event: str, **_: str | int) -> None:
    global hits
    hits += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    with warnings.catch_warnings():
        yield
    compilation.keep_programs("none", pathlib.Path("."))


def compute(number: float) -> float:
    """The same program each time, as a new process would meet it: jit knows nothing of the call before."""
    return float(jax.jit(lambda x: jnp.sin(x) * 3 + jnp.arange(7).sum())(jnp.float32(number)))


def test_a_program_is_compiled_once_and_read_afterwards(tmp_path) -> None:
    assert compilation.keep_programs("auto", tmp_path / "run") is None
    before, spent = hits, compilation.seconds()
    first = compute(0.5)
    assert hits == before and compilation.seconds() > spent and any((tmp_path / ".compilation_cache").iterdir())
    assert compute(0.5) == first and hits > before
    assert [path.name for path in tmp_path.iterdir()] == [".compilation_cache"]


def test_damaged_entries_are_compiled_again(tmp_path) -> None:
    compilation.keep_programs(str(tmp_path / "cache"), tmp_path / "run")
    first = compute(0.25)
    for path in (tmp_path / "cache").glob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    before = hits
    assert compute(0.25) == first and hits == before


def test_a_folder_that_cannot_be_is_told_and_no_error(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    told = compilation.keep_programs(str(tmp_path / "file"), tmp_path / "run")
    assert str(tmp_path / "file") in told and "\n" not in told
    assert compute(0.125) == pytest.approx(21.374, abs=1e-3)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_that_vanishes_or_fills_up_is_no_error(tmp_path) -> None:
    compilation.keep_programs(str(tmp_path / "cache"), tmp_path / "run")
    compute(0.1)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("no folder any more")
    assert float(jax.jit(lambda x: jnp.cos(x) + 2)(jnp.float32(0.0))) == 3.0


def test_none_keeps_nothing(tmp_path) -> None:
    assert compilation.keep_programs("none", tmp_path / "run") is None
    compute(0.75)
    assert not any(tmp_path.iterdir())
