"""SOTOPIA's own files: scenarios, characters, combinations, and which of them belong to which split.

The folder (SOTOPIA_DATA) holds `environment_profiles.jsonl`, `agent_profiles.jsonl` and `env_agent_combo_storages.jsonl`, and for the splits
`hard`, `train` and `dev` also `sotopia_pi_used_env.json`. `relationship_profiles.jsonl` is checked where it is there, but nobody is shown its
stories: how two characters stand to each other is the scenario's `relationship`, which is what visibility depends on.

- `all`: the 450 combinations, five of each of the 90 scenarios in the list `sotopia_env` (where that file is missing: all there are), in order.
- `hard`: the 70 of the 14 scenarios in the list `sotopia_hard_env`.
- `train`, `dev`: the combinations of the scenarios listed under `SFT-round-1` and the three `selftrain-round-…`, and under `dev-round-1`. Those are
  410 scenarios of SOTOPIA-π, none of which is among the 90: the evaluation set's files do not hold them. The splits work where the folder's
  files hold those scenarios and combinations too; elsewhere they say so.

Everything read is checked; a damaged file is told in one sentence. "nan", "none" and "" mean that a field is absent.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

from envs.sotopia.people import Character, Relationship
from envs.sotopia.scenario import Combination, Scenario
from epo_jax.errors import UserError

SPLITS = ("all", "hard", "train", "dev")
SCENARIOS, CHARACTERS, COMBINATIONS = "environment_profiles.jsonl", "agent_profiles.jsonl", "env_agent_combo_storages.jsonl"
RELATIONSHIPS, USED = "relationship_profiles.jsonl", "sotopia_pi_used_env.json"

# split -> how the keys of USED begin that list its scenarios.
_LISTS = {"all": ("sotopia_env",), "hard": ("sotopia_hard_env",), "train": ("SFT-round-", "selftrain-round-"), "dev": ("dev-round-",)}
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_Record = TypeVar("_Record")


def data_folder(data: str | os.PathLike | None) -> pathlib.Path:
    """The folder that was named, or else SOTOPIA_DATA."""
    data = data or os.environ.get("SOTOPIA_DATA")
    if not data:
        raise UserError(
            "SOTOPIA's scenarios are needed: set SOTOPIA_DATA to the folder that holds environment_profiles.jsonl, or use generated:train and"
            " generated:eval"
        )
    folder = pathlib.Path(data)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: set SOTOPIA_DATA to the one that holds {SCENARIOS}")
    return folder


def combinations(data: str | os.PathLike | None, split: str) -> tuple[Combination, ...]:
    """The combinations of a split, in the file's order. UserError if a file is missing or damaged, or lists none for this split."""
    folder = data_folder(data)
    everything = _combinations(folder.resolve())
    if split == "all" and not (folder / USED).exists():
        return everything
    listed = _listed(folder.resolve())[split]
    found = tuple(combination for combination in everything if combination.scenario.id in listed)
    if not found:
        raise UserError(
            f"{folder / COMBINATIONS} holds no combination of the {len(listed)} scenarios that {USED} lists for {split!r}: add their scenarios and"
            " combinations to the folder's files, or use another split"
        )
    return found


def combination(data: str | os.PathLike | None, identifier: str) -> Combination:
    """One combination by its combo_id; UserError if there is none."""
    folder = data_folder(data)
    found = _by_id(folder.resolve()).get(identifier)
    if found is None:
        raise UserError(f"{folder / COMBINATIONS} holds no combination {identifier!r}: use an id that tasks('all') lists")
    return found


@functools.lru_cache(maxsize=4)
def _by_id(folder: pathlib.Path) -> dict[str, Combination]:
    return {combination.id: combination for combination in _combinations(folder)}


@functools.lru_cache(maxsize=4)
def _combinations(folder: pathlib.Path) -> tuple[Combination, ...]:
    scenarios = {scenario.id: scenario for scenario in _records(folder / SCENARIOS, _scenario)}
    characters = {character.id: character for character in _records(folder / CHARACTERS, _character)}
    if (folder / RELATIONSHIPS).exists():
        _records(folder / RELATIONSHIPS, lambda record: _relationship(record["relationship"]))

    def read(record: dict[str, Any]) -> Combination:
        identifier, pair = _identifier(record["combo_id"]), record["agent_ids"]
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("agent_ids must be two characters")
        for name in (record["env_id"], *pair):
            if name not in scenarios and name not in characters:
                raise ValueError(f"there is no {name!r}")
        return Combination(identifier, scenarios[record["env_id"]], (characters[pair[0]], characters[pair[1]]))

    found = _records(folder / COMBINATIONS, read)
    if len({combination.id for combination in found}) < len(found):
        raise UserError(f"{folder / COMBINATIONS} names a combo_id twice: download it again")
    return tuple(found)


def _records(path: pathlib.Path, read: Callable[[dict[str, Any]], _Record]) -> list[_Record]:
    """`read` of every line of a JSONL file; UserError names the line that it cannot read."""
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no JSON object")
            found.append(read(record))
        except KeyError as error:
            raise UserError(f"{path}, line {number}: {error} is missing or unknown; download the file again") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}, line {number} cannot be read ({error}); download the file again") from None
    if not found:
        raise UserError(f"{path} is empty: download it again")
    return found


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise UserError(f"{path} cannot be read ({reason}): set SOTOPIA_DATA to the folder with SOTOPIA's files") from None


def _scenario(record: dict[str, Any]) -> Scenario:
    goals = record["agent_goals"]
    if not isinstance(goals, list) or len(goals) != 2:
        raise ValueError("agent_goals must be two goals")
    return Scenario(
        id=_identifier(record["env_id"]),
        codename=_words(record.get("codename")),
        kind=_words(record.get("source")),
        text=_required(record["scenario"], "scenario"),
        goals=(_required(goals[0], "a goal"), _required(goals[1], "a goal")),
        relationship=_relationship(record["relationship"]),
    )


def _character(record: dict[str, Any]) -> Character:
    age = record.get("age")
    if isinstance(age, str) and age.strip().isdigit():
        age = int(age)
    return Character(
        id=_identifier(record["agent_id"]),
        first_name=_required(record["first_name"], "first_name"),
        last_name=_words(record.get("last_name")),
        age=age if isinstance(age, int) and not isinstance(age, bool) and 0 < age < 200 else None,
        occupation=_words(record.get("occupation")),
        gender=_words(record.get("gender")),
        pronouns=_words(record.get("gender_pronoun")),
        public_info=_words(record.get("public_info")),
        personality=_words(record.get("personality_and_values")),
        secret=_words(record.get("secret")),
    )


def _relationship(value: Any) -> Relationship:
    """0 to 5, as a number or as its digits."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"relationship is {value!r}")
    try:
        return Relationship(int(value))
    except ValueError:
        raise ValueError(f"relationship is {value!r}: it must be a whole number from 0 (stranger) to 5 (family)") from None


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"{value!r} is no id")
    return value


def _required(value: Any, name: str) -> str:
    text = _words(value)
    if not text:
        raise ValueError(f"{name} is absent")
    return text


def _words(value: Any) -> str:
    """A text field; "" where it is absent."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return "" if value.strip().lower() in ("", "nan", "none") else value.strip()


@functools.lru_cache(maxsize=4)
def _listed(folder: pathlib.Path) -> dict[str, frozenset[str]]:
    """split -> the ids of its scenarios."""
    path = folder / USED
    try:
        lists = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no JSON: download it again") from None
    if not isinstance(lists, dict) or not all(isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in lists.values()):
        raise UserError(f"{path} must be lists of scenario ids by name: download it again")
    return {split: frozenset(id for name, ids in lists.items() if name.startswith(keys) for id in ids) for split, keys in _LISTS.items()}
