"""Games for the ALFWorld tests: real ones straight from the archives, and generated ones that need no data."""

from __future__ import annotations

import json
import pathlib
import tarfile
from collections.abc import Iterator

import pytest

from envs.alfworld.generator import generate_game


def games_in(archive: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """(path, decoded JSON) of every game in a tar.xz, in the archive's order."""
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            if member.name.endswith("game.tw-pddl"):
                yield member.name.removeprefix("./"), json.load(tar.extractfile(member))


@pytest.fixture(scope="session")
def seen_games(shared: pathlib.Path) -> dict[str, dict]:
    """The 140 games of valid_seen: path as in the transcripts -> decoded JSON."""
    return dict(games_in(shared / "data" / "alfworld" / "valid_seen.tar.xz"))


@pytest.fixture
def training_games(shared: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """The 3,553 games of train, one after the other."""
    return games_in(shared / "data" / "alfworld" / "train.tar.xz")


@pytest.fixture
def game_data() -> dict:
    """A generated game's JSON, fresh for each test (they damage it)."""
    return generate_game(3, size="small")
