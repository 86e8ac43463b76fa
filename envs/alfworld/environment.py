"""ALFWorld as an environment: tasks by split, episodes, progress and an expert's next move.

Splits `train`, `valid_seen` and `valid_unseen` are ALFWorld's real games, in the layout of
`alfworld-download` under the folder that the environment variable ALFWORLD_DATA names. Splits
`generated:train` and `generated:eval` are households that the project makes itself; they share no seed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from envs.alfworld import phrases, planner, text
from envs.alfworld.engine import AlfworldEngine, Game
from envs.alfworld.loader import read_json
from envs.speaker import MIXED, PRECISE
from epo_jax.errors import UserError

REAL_SPLITS = ("train", "valid_seen", "valid_unseen")
GENERATED_SPLITS = ("generated:train", "generated:eval")
SPLITS = REAL_SPLITS + GENERATED_SPLITS
GAME_FILE = "game.tw-pddl"
GAME_OVER = "The game is over: no action changes it any more."

_SOLVABLE = re.compile(rb'"solvable"\s*:\s*(true|false)\b')


@dataclasses.dataclass(frozen=True)
class AlfworldTask:
    """One game. id: "split/…": the game's folder in a real split, a number in a generated one."""

    id: str
    path: str | None = None
    seed: int | None = None

    @property
    def task_type(self) -> str | None:
        """What kind of task a real game's folder says it is ("pick_heat_then_place_in_recep"), where it does."""
        found = re.search(r"(pick_and_place_simple|look_at_obj_in_light|pick_\w+?_then_place_in_recep|pick_two_obj_and_place)-", self.id)
        return found and found[1]


class AlfworldEnvironment:
    """Plays ALFWorld games. Reward is 1 on the step that wins and 0 before; there is no step limit here.

    data: the folder that holds json_2.1.1, or that folder itself; None takes ALFWORLD_DATA.
    size: of generated households ("small", …; see generator.generate_game).
    generated: how many games `tasks` lists for each generated split.
    banner: keep TextWorld's "-= Welcome …" line in the first observation; agents' prompts leave it out.
    """

    def __init__(
        self,
        data: str | os.PathLike | None = None,
        size: str = "small",
        generated: dict[str, int] | None = None,
        banner: bool = False,
    ) -> None:
        self._data = data
        self._size = size
        self._generated = {"generated:train": 10_000, "generated:eval": 500} | (generated or {})
        self._banner = banner
        self.engine: AlfworldEngine | None = None
        self.task: AlfworldTask | None = None

    # --- which games there are ----------------------------------------------------------------

    def tasks(self, split: str) -> list[AlfworldTask]:
        """The games of a split in a fixed order.

        As ALFWorld's own loader does, leaves out games with movable receptacles or slices, and
        games not marked solvable. Real games come sorted by folder.
        """
        _check_split(split)
        if split in GENERATED_SPLITS:
            return [_generated_task(split, index) for index in range(self._generated[split])]
        return list(_real_tasks(self._split_folder(split), split))

    def default_splits(self) -> tuple[str, str]:
        """Real games where ALFWORLD_DATA is set, else generated ones."""
        return ("train", "valid_seen") if self._data or os.environ.get("ALFWORLD_DATA") else GENERATED_SPLITS

    def find_task(self, identifier: str, split: str | None = None) -> AlfworldTask:
        """The game with this id; with a split, an id without it, or a number in the split's order, will do too."""
        if split is not None:
            _check_split(split)
            if not identifier.startswith(split + "/"):
                identifier = f"{split}/{identifier}"
        split, _, rest = identifier.partition("/")
        if split not in SPLITS:
            raise UserError(f"the task id {identifier!r} does not start with a split: {', '.join(SPLITS)}")
        number = int(rest) if re.fullmatch(r"[0-9]{1,9}", rest) else None
        if split in GENERATED_SPLITS:
            if number is None:
                raise UserError(f"a task of {split} is a number, as in {split}/17; this is {identifier!r}")
            return _generated_task(split, number)
        if number is not None:
            tasks = self.tasks(split)
            if number >= len(tasks):
                raise UserError(f"{split} has {len(tasks)} games, numbered from 0: there is no {number}")
            return tasks[number]
        folder = self._split_folder(split)
        parts = [part for part in rest.split("/") if part]
        path = folder.joinpath(*parts, GAME_FILE)
        if not parts or ".." in parts or not path.is_file():
            raise UserError(f"there is no game {identifier!r} in {folder}: use an id that tasks({split!r}) lists")
        return AlfworldTask(id="/".join([split, *parts]), path=str(path))

    def task_of_file(self, path: str) -> AlfworldTask:
        """The game in one file, wherever it lies."""
        return AlfworldTask(id=str(path), path=str(path))

    def _split_folder(self, split: str) -> pathlib.Path:
        data = self._data or os.environ.get("ALFWORLD_DATA")
        if not data:
            raise UserError(
                f"the split {split!r} needs ALFWorld's games: download them with alfworld-download and set ALFWORLD_DATA"
                " to the folder that holds json_2.1.1, or use generated:train and generated:eval"
            )
        for folder in (pathlib.Path(data) / "json_2.1.1" / split, pathlib.Path(data) / split):
            if folder.is_dir():
                return folder
        raise UserError(f"there is no folder json_2.1.1/{split} in {data}: set ALFWORLD_DATA to the folder that holds json_2.1.1")

    # --- an episode ---------------------------------------------------------------------------

    def reset(self, task: AlfworldTask | str) -> str:
        """Starts a game; returns the room and the task."""
        if isinstance(task, str):
            task = self.find_task(task)
        engine = AlfworldEngine(self._game(task))
        self.task, self.engine = task, engine
        self._progress = planner.Progress(engine)
        self._success = engine.won
        observation = engine.reset()
        return observation if self._banner else observation.removeprefix(text.BANNER).lstrip("\n")

    def _game(self, task: AlfworldTask) -> Game:
        if task.path is not None:
            return Game.load(task.path)
        from envs.alfworld.generator import generate_game

        return Game.from_dict(generate_game(task.seed, size=self._size), source=task.id)

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """observation, reward, done, {"success", "admissible"}. A game ends when it is won."""
        engine = self._playing()
        if self._success:
            return GAME_OVER, 0.0, True, {"success": True, "admissible": []}
        observation = engine.step(action)
        self._success = engine.won
        self._progress.update(engine)
        reward = 1.0 if self._success else 0.0
        return observation, reward, self._success, {"success": self._success, "admissible": self.admissible}

    @property
    def admissible(self) -> list[str]:
        """The commands that do something now, sorted. After the winning step too, as TextWorld gives them."""
        return self._playing().admissible_commands()

    def progress(self) -> float:
        """The episode's progress in [0, 1] (planner.Progress): never falls, 1 exactly when won."""
        self._playing()
        return self._progress.best

    def expert_action(self) -> str:
        """The planner's next command; "look" when the game is over."""
        return planner.expert_action(self._playing())

    def demonstration(
        self, seed: int, *, max_turns: int, actor: Callable[[str, Sequence[str]], str] | None
    ) -> list[tuple[str, str, str]]:
        """The present game from its start as the explorer advises it: (strategy, action, observation) of each turn.

        The explorer words its strategies in mixed styles, `actor(strategy, admissible)` acts on the words, and the explorer
        goes on from what really happened. Without an actor it acts itself, and words every decision precisely.
        """
        self._playing()
        weights = PRECISE if actor is None else MIXED
        shown = phrases.demonstrate(self, self.task, random.Random(seed), weights, max_turns=max_turns, actor=actor)
        return [(step.strategy, step.action, step.observation) for step in shown.steps]

    @property
    def task_id(self) -> str:
        """The id of the present game."""
        self._playing()
        return self.task.id

    @property
    def task_type(self) -> str:
        """Which of the six kinds the present game's goal is ("pick_heat_then_place_in_recep")."""
        return self._playing().game.goal.task_type

    @property
    def success(self) -> bool:
        """Whether the present game is won."""
        self._playing()
        return self._success

    @property
    def outcome(self) -> float:
        """1 if the present game is won, else 0."""
        return float(self.success)

    def _playing(self) -> AlfworldEngine:
        if self.engine is None:
            raise RuntimeError("reset an environment before anything else")
        return self.engine


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: use one of {', '.join(SPLITS)}")


def _generated_task(split: str, index: int) -> AlfworldTask:
    from envs.alfworld.generator import EVALUATION_SEEDS

    if index >= EVALUATION_SEEDS:
        raise UserError(f"games of {split} are numbered below {EVALUATION_SEEDS}: there is no {index}")
    return AlfworldTask(id=f"{split}/{index}", seed=index + (EVALUATION_SEEDS if split == "generated:eval" else 0))


@functools.lru_cache(maxsize=8)
def _real_tasks(folder: pathlib.Path, split: str) -> tuple[AlfworldTask, ...]:
    found = []
    for path in folder.glob(f"*/*/{GAME_FILE}"):
        name = path.parent.relative_to(folder).as_posix()
        if "movable" in name or "Sliced" in name or not _is_solvable(path):
            continue
        found.append(AlfworldTask(id=f"{split}/{name}", path=str(path)))
    if not found:
        raise UserError(f"there are no games in {folder}: download them with alfworld-download")
    return tuple(sorted(found, key=lambda task: task.id))


def _is_solvable(path: pathlib.Path) -> bool:
    """Whether a game file says "solvable": true. It stands near the end, so that part is read first."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            marks = _SOLVABLE.findall(file.read(4096))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return marks[0] == b"true" if len(marks) == 1 else read_json(path).get("solvable") is True
