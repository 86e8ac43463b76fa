"""Compiled programs outlive their process: a persistent cache beside the runs' folders, and the clock of what compiling cost.

A second start of the same command reads its programs instead of compiling them; it still traces them. What a program is (its operations, shapes,
devices, compiler version and flags) is its name in the cache, so nothing stale is ever read, and any number of runs share one folder.
"""

from __future__ import annotations

import os
import pathlib
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

LARGEST = 2 << 30  # bytes; then what was not used for longest goes
FOLDER = ".compilation_cache"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # of one program, or of reading it from the cache

_seconds = 0.0


def _listen(event: str, seconds: float, **_: str | int) -> None:
    global _seconds
    if event == _COMPILED:
        _seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


def seconds() -> float:
    """What this process has spent compiling, or reading compiled programs, since this module was imported; tracing is not in it."""
    return _seconds


def keep_programs(setting: str, run: pathlib.Path) -> str | None:
    """Turns the persistent cache on, as `config.compilation_cache` says: "auto" (in the parent of the folder `run`), a path, or "none".

    Returns a sentence where the folder cannot be used: the run is only slower at its start then. A program that later can be neither
    read nor written (a full disk) is compiled as if there were no cache.
    """
    if setting == "none":
        folder = None
    else:
        folder = run.absolute().parent / FOLDER if setting == "auto" else pathlib.Path(setting).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "it is read-only")
        except OSError as error:
            return f"programs are not kept in {folder} ({error.strerror or error}): every start compiles them again."
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a run's many small programs take seconds together
    compilation_cache.reset_cache()  # one that this process used before has another folder
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    return None
