"""Checkpoints: everything a run needs to go on, on disk in steps that are either whole or not there.

    folder/step_0000000120/state/            the arrays (orbax), each restored straight into its sharding
    folder/step_0000000120/checkpoint.json   the record (round, phase, configuration, ...) and size and checksum of every file

A step is written under another name and renamed when all of it is on disk, so a process that is killed at any moment leaves the steps before
as they were. At restoring, the newest step is checked against its checksums; a damaged one is named and the one before is used. Of several
processes the first one chooses and checks, all load what it chose, and where one of them cannot, all go back together. Random keys
are stored as their raw data. `begin` copies the state and writes it while the run goes on; `save` waits for it. The folder must be on a file
system with atomic renames that all hosts share.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from epo_jax import stored_state
from epo_jax.checkpoint_files import Record, contents, damage_of, read_contents, remove, size_damage, sync_folder, why_not_written, write_and_sync
from epo_jax.errors import UserError
from epo_jax.hosts import exchange

T = TypeVar("T")

_STEP = re.compile(r"step_(\d{10,})")
_SET_ASIDE = ".replaced-"
_UNFINISHED = (".partial-", ".deleted-")


class Checkpoints:
    """The checkpoints of one run, in one folder, of which the last `keep` are kept, whatever their age those whose record says `"keep": true`,
    and those that `outlasting` names.

    `say` is told, in one sentence each, of damaged checkpoints that are passed over. Of several processes all call the same methods in the same
    order, but for `steps`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3, say: Callable[[str], None] | None = None):
        if "://" in str(folder):
            raise UserError(f"checkpoints cannot be written to {folder}: give a folder on a mounted file system (mount the bucket).")
        self.folder = pathlib.Path(folder).absolute()
        self.keep = max(1, keep)
        self.outlasting: Collection[int] = ()
        self._say = say or (lambda sentence: print(sentence, file=sys.stderr))
        self._writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: concurrent.futures.Future[None] | None = None
        self._known: dict[pathlib.Path, str | None] = {}  # what `latest` has just found wrong with steps: who restores next need not read them again

    # --- saving -------------------------------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, record: Record) -> pathlib.Path:
        """`begin` and `settle`; returns the folder of the step."""
        self.begin(step, state, record)
        self.settle()
        return self._folder_of(step)

    def begin(self, step: int, state: Any, record: Record) -> None:
        """Take a checkpoint, to be written while the caller goes on (it may donate the state at once); all hosts call it.

        `state` is a pytree of arrays (random keys and plain numbers included); `record` is JSON-able. A step that is there already is replaced.
        Waits for the one before. Raises `UserError` if that, or this one, cannot be written (a full disk, for example); the checkpoints before stay.
        """
        self.settle()
        try:
            text = json.dumps(record)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's record is not JSON-able: {error}") from error
        self._known.clear()
        with self._whole_or_not_there(step) as partial:
            if _is_first_host():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._tidy()
                partial.mkdir()
            _meet("checkpoint-begin")
            with _orbax_quiet():
                arrays = ocp.save_async(partial / "state", _copy_if_shared(stored_state.to_stored(state)))
        self._under_way = self._writer.submit(self._complete, step, arrays, json.loads(text), frozenset(self.outlasting))

    def settle(self) -> None:
        """Wait until what was begun is on disk, or raise the `UserError` that it came to."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _complete(self, step: int, arrays: Any, record: Record, outlasting: frozenset[int]) -> None:
        """Waits for the arrays of all hosts; then the first one puts the step in its place."""
        with self._whole_or_not_there(step) as partial:
            with _orbax_quiet():
                arrays.result()
            if _is_first_host():
                write_and_sync(partial / "checkpoint.json", contents(partial, record, step))
                self._put_in_place(partial, self._folder_of(step))
                self._delete_passed_over(step)
                self._delete_oldest(outlasting)

    @contextlib.contextmanager
    def _whole_or_not_there(self, step: int) -> Iterator[pathlib.Path]:
        """The folder in which a step is written; if that fails, nothing of it stays, and what the file system refused is a `UserError`."""
        target = self._folder_of(step)
        partial = self.folder / f".partial-{target.name}"
        try:
            yield partial
        except BaseException as error:
            if _is_first_host():
                shutil.rmtree(partial, ignore_errors=True)
                self._undo_replacement(target)
            sentence = why_not_written(error)
            if sentence is None:
                raise
            raise UserError(f"cannot save a checkpoint in {self.folder}: {sentence}; the last good one is {self._name_of_latest(step)}.") from error

    def _folder_of(self, step: int) -> pathlib.Path:
        return self.folder / f"step_{step:010d}"

    def _put_in_place(self, partial: pathlib.Path, target: pathlib.Path) -> None:
        aside = self.folder / (_SET_ASIDE + target.name)
        if target.exists():
            os.rename(target, aside)
        os.rename(partial, target)
        sync_folder(self.folder)
        remove(aside)

    def _undo_replacement(self, target: pathlib.Path) -> None:
        aside = self.folder / (_SET_ASIDE + target.name)
        if aside.exists() and not target.exists():
            os.rename(aside, target)

    def _delete_passed_over(self, written: int) -> None:
        """Steps newer than the one just written: the run went back past them, and comes to their numbers again. They would push out good ones."""
        newer = {step: path for step, path in sorted(self._steps().items()) if step > written}
        for path in newer.values():
            remove(path)
        if newer:
            which = ", ".join(map(str, newer))
            self._say(f"Checkpoints in {self.folder} that the run went back past are deleted, as it has saved step {written} since: {which}.")

    def _delete_oldest(self, outlasting: frozenset[int]) -> None:
        whole = {step: path for step, path in self._steps().items() if size_damage(path) is None}
        for step in sorted(whole)[: -self.keep]:
            if step not in outlasting and not read_contents(whole[step])["record"].get("keep"):
                remove(whole[step])

    def _tidy(self) -> None:
        """Clear up what a killed process left: a step that was set aside comes back, unfinished ones go."""
        for path in list(self.folder.iterdir()):
            if path.name.startswith(_SET_ASIDE):
                if (self.folder / path.name.removeprefix(_SET_ASIDE)).exists():
                    remove(path)
                else:
                    os.rename(path, self.folder / path.name.removeprefix(_SET_ASIDE))
            elif path.name.startswith(_UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)

    # --- finding ------------------------------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps on disk, oldest first; damaged ones included."""
        return sorted(self._steps())

    def latest(self) -> int | None:
        """The newest step that is whole, or None; damaged newer ones are named to `say`."""

        def newest() -> int | None:
            self._known.clear()
            found = next(self._whole(remember=True), None)
            return None if found is None else found[0]

        return exchange.by_first(newest)

    def read_record(self, step: int | None = None) -> Record:
        """The record of a step (the newest whole one if None). Raises `UserError` where there is none."""
        return self._find(step)[2]

    def _steps(self) -> dict[int, pathlib.Path]:
        if not self.folder.is_dir():
            return {}
        found: dict[int, pathlib.Path] = {}
        for path in self.folder.iterdir():
            name = path.name.removeprefix(_SET_ASIDE)  # killed between the two renames of a replacement: it is whole
            match = _STEP.fullmatch(name)
            if match and path.is_dir() and (path.name == name or not (self.folder / name).exists()):
                found[int(match.group(1))] = path
        return found

    def _whole(self, before: int | None = None, *, remember: bool = False) -> Iterator[tuple[int, pathlib.Path, Record]]:
        """Whole checkpoints, newest first; only those before a step, if one is given."""
        for step, path in sorted(self._steps().items(), reverse=True):
            if before is not None and step >= before:
                continue
            told = path in self._known
            damage = self._damage_of(path)
            if remember:
                self._known[path] = damage
            if damage is None:
                yield step, path, read_contents(path)["record"]
            elif not told:
                self._say(f"The checkpoint {path} is damaged ({damage}): the one before it is used.")

    def _damage_of(self, path: pathlib.Path) -> str | None:
        """As `damage_of`; but what is known of it counts once, beside what can be seen without reading."""
        if path in self._known:
            return self._known.pop(path) or size_damage(path)
        return damage_of(path)

    def _find(self, step: int | None, before: int | None = None) -> tuple[int, pathlib.Path, Record]:
        """A step, or the newest whole one (before another), as the first process finds it: others may see an old listing, and need not read all."""
        number, name, record = exchange.by_first(lambda: self._find_here(step, before))
        return number, self.folder / name, record

    def _find_here(self, step: int | None, before: int | None) -> tuple[int, str, Record]:
        if step is None:
            found = next(self._whole(before), None)
            if found is None:
                raise UserError(self._none_usable())
            return found[0], found[1].name, found[2]
        path = self._steps().get(step)
        if path is None:
            raise UserError(f"no checkpoint of step {step} in {self.folder}: it holds {', '.join(map(str, self.steps())) or 'none'}.")
        damage = self._damage_of(path)
        if damage is not None:
            raise UserError(f"the checkpoint {path} is damaged ({damage}): choose another step, or leave the step out for the newest whole one.")
        return step, path.name, read_contents(path)["record"]

    def best(self) -> int | None:
        """The step of the round that a run keeps as its best (`checkpoint.keep_best`), as its newest whole checkpoint says; None where it keeps none."""
        best = self._find(None)[2].get("position", {}).get("best")
        return best[0]["step"] if best else None

    def _none_usable(self) -> str:
        return f"no usable checkpoint in {self.folder}: give a run's folder of checkpoints, or start the run anew in an empty one."

    def _name_of_latest(self, unwritten: int) -> str:
        """The newest one that a run goes back to that could not write a step; those after it were passed over."""
        steps = [step for step, path in self._steps().items() if step <= unwritten and size_damage(path) is None]
        return f"step {max(steps)}" if steps else "none: nothing has been saved yet"

    # --- restoring ----------------------------------------------------------------------------------------------------------------------------

    def restore(self, abstract_state: Any, *, step: int | None = None, model: Mapping[str, Any] | None = None) -> tuple[Any, Record]:
        """(state, record) of the newest whole checkpoint, or of `step`.

        `abstract_state` is a pytree like the saved one, of `jax.ShapeDtypeStruct`s with the wanted shardings (or of arrays, whose shardings are
        taken); the mesh may differ from the one that saved. `model`, if given, must equal `record["model"]`.
        Raises `UserError` that names what differs if the checkpoint is of another model or another kind of state.
        """
        self.settle()
        wanted = stored_state.to_stored_abstract(abstract_state)
        before = None
        while True:
            found, path, record = self._find(step, before)
            differences = config_differences(record.get("model"), json.loads(json.dumps(model))) if model is not None else []
            if differences:
                raise UserError(f"the checkpoint {path} is of another model: {'; '.join(differences[:4])}; use its configuration or another folder.")
            try:
                tree = _read_by_all(path, lambda: _stored_tree(path))
                differences = stored_state.shape_differences(stored_state.shapes(tree), wanted)
                differences = next(filter(None, exchange.gather_json(differences)), [])
                stored = {} if differences else _read_by_all(path, lambda: _load(path, wanted))
            except UserError as error:  # damage that checksums cannot show, or a host that cannot read what the first one could
                sentence = str(error)
                self._say(f"{sentence[0].upper()}{sentence[1:]}{': the one before it is tried' if step is None else ''}.")
                if step is not None:
                    raise UserError(self._none_usable()) from error
                before = found
                continue
            if differences:
                raise UserError(f"the checkpoint {path} holds another state: {'; '.join(differences[:4])}; use its configuration or another folder.")
            return stored_state.from_stored(stored, abstract_state), record


def restore_params(
    folder: str | os.PathLike[str], step: int | None = None, *, shardings: Any = None, name: str = "params"
) -> tuple[dict[str, Any], dict[str, Any], Record]:
    """(model configuration, parameters, record) of a run's checkpoint, without its optimizer: for export and evaluation.

    The model configuration is `record["model"]`; `name` is where the parameters stand in the saved state (dots between levels). `shardings` is a
    pytree of shardings like the parameters, or a function from the record to one, or None for one device.
    """
    _, path, record = Checkpoints(folder)._find(step)
    stored: Any = _read_by_all(path, lambda: _stored_tree(path))
    for part in name.split("."):
        if not isinstance(stored, dict) or part not in stored:
            raise UserError(f"the checkpoint {path} holds no {name!r}: give a checkpoint of a training run.")
        stored = stored[part]
    model = record.get("model", {})
    if callable(shardings):
        shardings = shardings(record)
    if shardings is None:
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: one_device, stored)
    if jax.tree.structure(shardings) != jax.tree.structure(stored):
        raise UserError(f"the parameters in {path} are not those of this model: give the configuration that made the checkpoint.")
    wanted: Any = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored, shardings)
    for part in reversed(name.split(".")):
        wanted = {part: wanted}
    params = _read_by_all(path, lambda: _load(path, wanted, partial=True))
    for part in name.split("."):
        params = params[part]
    return model, params, record


def config_differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two JSON-able configurations, one phrase each, such as "num_layers is 6 there and 4 here"."""
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        found = []
        for key in sorted({*saved, *wanted}, key=str):
            below = f"{name}.{key}" if name else str(key)
            if key not in saved:
                found.append(f"{below} is absent there and {wanted[key]!r} here")
            elif key not in wanted:
                found.append(f"{below} is {saved[key]!r} there and absent here")
            else:
                found += config_differences(saved[key], wanted[key], below)
        return found
    return [] if saved == wanted else [f"{name or 'the value'} is {saved!r} there and {wanted!r} here"]


def _stored_tree(path: pathlib.Path) -> dict[str, Any]:
    """Shapes and dtypes as they are on disk."""
    with _orbax_quiet():
        found = ocp.metadata(path / "state").metadata
    if not isinstance(found, dict):  # what orbax makes of files that it cannot read
        raise ValueError("what says which arrays it holds is damaged")
    return found


def _load(path: pathlib.Path, wanted: Any, *, partial: bool = False) -> dict[str, Any]:
    """This process's shards of the wanted arrays. Orbax is told that it is alone: it would wait minutes for a process that cannot read, and then take
    its next attempt for this one. `_read_by_all` waits instead."""
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    if exchange.count() > 1:
        context.multiprocessing.primary_host, context.multiprocessing.active_processes = exchange.index(), {exchange.index()}
    with context, _orbax_quiet():
        return ocp.load(path / "state", wanted)


def _read_by_all(path: pathlib.Path, read: Callable[[], T]) -> T:
    """What `read` returns here. Where it fails at any process, for whatever reason, all raise a `UserError` that says why."""

    def told() -> T:
        try:
            return read()
        except Exception as error:
            raise UserError(f"the checkpoint {path} cannot be read ({str(error).strip().partition(chr(10))[0][:200]})") from error

    return exchange.agreed(told)


def _copy_if_shared(stored: Any) -> Any:
    """What may be written while the caller's arrays change: on CPU a copy, since there the writer reads an array where it lies; elsewhere orbax
    takes its own to the host before it returns."""

    def safe(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return np.array(leaf)
        return jnp.copy(leaf) if next(iter(leaf.sharding.device_set)).platform == "cpu" else leaf

    return jax.tree.map(safe, stored)


@contextlib.contextmanager
def _orbax_quiet() -> Iterator[None]:
    """Keep orbax from logging stack traces of a failure that it raises as well (hundreds of lines for one full disk)."""

    def reject(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(reject)
    try:
        yield
    finally:
        logger.removeFilter(reject)


def _is_first_host() -> bool:
    return jax.process_index() == 0


def _meet(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
