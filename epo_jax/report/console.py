"""What a person sees while a run runs: the plan, progress bars, and a table a round."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, emoji=False)


def say(sentence: str) -> None:
    """One line to the terminal. The text is printed as it is: square brackets in it are no markup."""
    console.print(sentence, markup=False)


class Bar:
    """A progress bar with a changing note; without a terminal, nothing is drawn."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task
        self._start = time.monotonic()
        self._tokens = 0.0

    def advance(self, note: str = "", amount: int = 1) -> None:
        self._progress.update(self._task, advance=amount, note=note)

    def advance_reading(self, tokens: float) -> None:
        """One optimizer step further, which read so many tokens; the note is their rate since the start."""
        self._tokens += tokens
        self.advance(f"{self._tokens / max(self.seconds, 1e-3):.0f} tokens/s")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """A bar over `total` units of work, gone when the work is done."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(title, total=total, note=""))


ROUND_ROWS = (
    ("success", "success", "{:.1%}"),
    ("mean reward", "reward", "{:.3f}"),
    ("mean progress", "progress", "{:.3f}"),
    ("turns an episode", "turns", "{:.1f}"),
    ("episodes masked", "masked", "{:.0f}"),
    ("sampler–learner log-probability gap", "logprob_gap", "{:.2e}"),
    ("advantages not zero", "advantage_nonzero_share", "{:.1%}"),
    ("gradient norm", "grad_norm", "{:.3f}"),
    ("strategy length, tokens", "strategy_tokens", "{:.1f}"),
    ("repeated tokens", "repeated_token_share", "{:.1%}"),
    ("play / judge / learn, seconds", ("seconds_play", "seconds_judge", "seconds_learn"), "{:.1f}"),
    ("played / learned, tokens/s", ("play_tokens_per_second", "learn_tokens_per_second"), "{:.0f}"),
    ("compilations so far", "compilations", "{:.0f}"),
)


def round_table(title: str, values: Mapping[str, float]) -> None:
    """The table at the end of a round. A figure that does not exist is shown as a dash."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column()
    table.add_column(justify="right")
    for label, names, pattern in ROUND_ROWS:
        cells = [_cell(values.get(name), pattern) for name in ((names,) if isinstance(names, str) else names)]
        table.add_row(label, " / ".join(cells))
    console.print(table)


def _cell(value: float | None, pattern: str) -> str:
    return "–" if value is None or math.isnan(value) else pattern.format(value)
