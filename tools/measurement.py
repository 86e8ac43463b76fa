"""How the measuring tools measure and tell: two clocks, the machine, the spread of repeated figures, one table or one JSON object."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from epo_jax.errors import UserError
from epo_jax.report.console import console, say

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "transformers")


def main(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    *,
    quick: dict[str, int | str] | None = None,
) -> int:
    """Measures as the flags say and shows it, as tables or with `--json` as one object; returns the exit code, 2 after a mistake of one sentence.

    quick: the defaults of other flags that `--quick` stands for.
    """
    if quick:
        parser.add_argument("--quick", action="store_true", help=f"a short look: {', '.join(f'--{name}={value}' for name, value in quick.items())}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if quick and options.quick:
        parser.set_defaults(**quick)
        options = parser.parse_args(arguments)
    try:
        result = measure(options)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Taken(NamedTuple):
    """Seconds of a piece of work. wall: as the clock on the wall; processor: of all threads together ÷ cores.

    The second counts work alone: what others do on the machine does not lengthen it, and cores that wait are not seen.
    """

    wall: float
    processor: float


class Stopwatch:
    """Runs from when it is made. process: another process whose processor time counts beside ours (Linux)."""

    def __init__(self, process: int | None = None) -> None:
        self._process = process
        self._wall, self._processor = time.perf_counter(), self._processor_seconds()

    def taken(self) -> Taken:
        return Taken(time.perf_counter() - self._wall, (self._processor_seconds() - self._processor) / cores())

    def _processor_seconds(self) -> float:
        seconds = time.process_time()
        if self._process is not None:
            fields = pathlib.Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds


def machine() -> dict[str, Any]:
    """Processor, cores, memory and accelerator of this machine, and the versions that matter for a speed; what is not installed is left out."""
    import jax

    found: dict[str, Any] = {"processor": _processor(), "cores": cores()}
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[1], 1)  # of five minutes: above the cores, other programs took part of the time
    if (memory := _memory()) is not None:
        found["memory_gb"] = round(memory / 1e9, 1)
    if jax.default_backend() != "cpu":
        found["accelerator"] = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    found |= {"system": platform.system(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _processor() -> str:
    """The processor's name and, where it has them, its widest vector instructions: names of virtual machines' processors say little."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    vectors = next((told for flag, told in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return ", ".join(filter(None, (fields.get("model name", platform.machine()), vectors)))


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """{"min", "median", "max"} of repeated figures."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The spread of ours ÷ theirs, repeat by repeat: what else the machine did in a repeat fell on both."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def told(figure: dict[str, float] | float | None, pattern: str = "{:.2f}") -> str:
    """A figure in a table's cell; a spread as `median (min–max)`, and one that does not exist as nothing."""
    if figure is None:
        return ""
    if not isinstance(figure, dict):
        return pattern.format(figure)
    low, middle, high = (pattern.format(figure[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table; the first column holds words, the others figures."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    wide = console if console.is_terminal else Console(width=160, highlight=False, emoji=False)  # a file has no width to keep to
    wide.print(table)


def show_machine(found: dict[str, Any]) -> None:
    """The machine in one line."""
    say(", ".join(f"{name} {value}" for name, value in found.items()))
