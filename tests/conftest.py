"""Fixtures shared by the whole suite, and the eight simulated devices that its mesh tests need."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

# Before anything imports jax: the device count of the CPU backend is fixed when the backend starts.
# Half of the suite's time is LLVM polishing programs that run once on tiny arrays; what they compute does not depend on it.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402  (the environment must be set first)

from tests.foreign_server import ForeignServer, transformers_serve  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data: `EPO_SHARED`, else `shared` beside the repository."""
    folder = pathlib.Path(os.environ.get("EPO_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set EPO_SHARED to the folder that holds data/ and reference/")
    return folder


@pytest.fixture(scope="session")
def foreign_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForeignServer]:
    """transformers' own server with the mini strategist; it takes half a minute to start, so only slow tests ask for it."""
    model = REPOSITORY / "epo_jax" / "model" / "mini"
    with transformers_serve(model, tmp_path_factory.mktemp("foreign") / "log.txt") as server:
        yield server
