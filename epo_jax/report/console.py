"""What a person sees while a run runs: the plan, progress bars, and a table a round; without a terminal, a line a round."""

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
def bar(title: str, total: int, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar over `total` units of work, gone when the work is done; `quiet`: not drawn, as while another is."""
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
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(title, total=total, note=""))


# label, figures, pattern. The first part of the table has a column for every environment.
EPISODE_ROWS = (
    ("episodes", "episodes", "{:.0f}"),
    ("success", "success", "{:.1%}"),
    ("mean reward", "reward", "{:.3f}"),
    ("bought something", "bought", "{:.1%}"),
    ("mean progress", "progress", "{:.3f}"),
    ("turns an episode", "turns", "{:.1f}"),
    ("ended by a full context", "ended_by_context", "{:.1%}"),
    ("episodes masked", "masked", "{:.0f}"),
    ("actions that name nothing possible", "illegal_action_share", "{:.1%}"),
    ("actions asked for again", "asked_again_action_share", "{:.1%}"),
    ("actions that could not be read", "unread_action_share", "{:.1%}"),
    ("advantages not zero", "advantage_nonzero_share", "{:.1%}"),
    ("strategy length, tokens", "strategy_tokens", "{:.1f}"),
    ("strategies cut to the word limit", "overlong_strategy_share", "{:.1%}"),
    ("repeated tokens", "repeated_token_share", "{:.1%}"),
)
ROUND_ROWS = (
    ("sampler–learner log-probability gap", "logprob_gap", "{:.2e}"),
    ("gradient norm", "grad_norm", "{:.3f}"),
    ("padding", "padding_share", "{:.1%}"),
    ("play / judge / learn, seconds", ("seconds_play", "seconds_judge", "seconds_learn"), "{:.1f}"),
    ("played / learned, tokens/s", ("play_tokens_per_second", "learn_tokens_per_second"), "{:.0f}"),
    ("compilations so far, seconds", ("compilations", "compile_seconds"), "{:.0f}"),
)
# Only where an API model plays a part.
API_ROWS = tuple(
    row
    for role in ("actor", "judge", "evaluator")
    for row in (
        (f"{role}: calls / retries / failed for good", (f"api_{role}_calls", f"api_{role}_retries", f"api_{role}_failed"), "{:.0f}"),
        (f"{role}: from the cache", f"api_{role}_cached_share", "{:.1%}"),
        (f"{role}: tokens read / written", (f"api_{role}_prompt_tokens", f"api_{role}_completion_tokens"), "{:.0f}"),
        (f"{role}: money", f"api_{role}_money", "{:.2f}"),
        (f"{role}: seconds paused", f"api_{role}_seconds_paused", "{:.1f}"),
    )
) + (("episodes that the judge failed on", "judge_failed", "{:.0f}"), ("money, the whole run", "api_spent_money", "{:.2f}"))


# What a line has room for.
LINE = (
    ("success", "success", "{:.1%}"),
    ("reward", "reward", "{:.3f}"),
    ("masked", "masked", "{:.0f}"),
    ("strategy", "strategy_tokens", "{:.1f} tokens"),
    ("gap", "logprob_gap", "{:.1e}"),
    ("gradient", "grad_norm", "{:.3f}"),
    ("played", "play_tokens_per_second", "{:.0f} tokens/s"),
    ("learned", "learn_tokens_per_second", "{:.0f} tokens/s"),
    ("money", "api_spent_money", "{:.2f}"),
)


def report_round(round: int, rounds: int, values: Mapping[str, float]) -> None:
    """The end of a round: a table on a terminal, elsewhere (a log file) a line, with each environment's success and reward."""
    left = time_left(rounds - round, values)
    title = f"round {round} of {rounds}{f', {left} left' if left else ''}"
    if console.is_terminal:
        console.print(*round_tables(title, values))
    else:
        say(round_line(title, values))


def time_left(rounds: int, values: Mapping[str, float]) -> str:
    """How long so many more rounds take, evaluations not counted, if they take as long as the one with these figures; "" if that says nothing."""
    seconds = rounds * math.fsum(values.get(f"seconds_{phase}", math.nan) for phase in ("play", "judge", "learn"))
    if not seconds > 0:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def round_line(title: str, values: Mapping[str, float]) -> str:
    """The round in one line. A figure that does not exist is left out."""
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    parts = [f"{label} {pattern.format(known[name])}" for label, name, pattern in LINE if name in known]
    environments = _environments(values)
    for environment in environments if len(environments) > 1 else ():
        mine = [f"{label} {pattern.format(known[found])}" for label, name, pattern in LINE[:2] if (found := f"{environment}/{name}") in known]
        parts.append(f"{environment}: {' '.join(mine)}")
    return f"{title}: {', '.join(parts)}"


def round_tables(title: str, values: Mapping[str, float]) -> list[Table]:
    """The table at the end of a round: all episodes, and each environment's where there are several. A figure that does not exist is a dash.

    Two tables, so that the long cells of the second do not squeeze the columns of the first.
    """
    environments = _environments(values)
    columns = ["", *(f"{name}/" for name in environments)] if len(environments) > 1 else [""]
    style = {"box": None, "padding": (0, 1, 0, 2), "pad_edge": False}
    of_episodes = Table(title=title, title_justify="left", show_header=len(columns) > 1, **style)
    of_episodes.add_column(min_width=LABEL_WIDTH, no_wrap=True)
    for prefix in columns:
        of_episodes.add_column(prefix.rstrip("/") or "all", justify="right")
    for label, name, pattern in EPISODE_ROWS:
        if name in values and not math.isnan(values[name]):
            of_episodes.add_row(label, *(_cell(values.get(prefix + name), pattern) for prefix in columns))
    of_round = Table(show_header=False, **style)
    of_round.add_column(min_width=LABEL_WIDTH, no_wrap=True)
    of_round.add_column()
    api_rows = [row for row in API_ROWS if _names(row[1])[0] in values]
    for label, names, pattern in (*ROUND_ROWS, *(api_rows if "api_spent_money" in values else ())):
        of_round.add_row(label, " / ".join(_cell(values.get(name), pattern) for name in _names(names)))
    return [of_episodes, of_round]


def _environments(values: Mapping[str, float]) -> list[str]:
    return sorted({name.partition("/")[0] for name in values if "/" in name})


LABEL_WIDTH = max(len(label) for label, _, _ in (*EPISODE_ROWS, *ROUND_ROWS))


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _cell(value: float | None, pattern: str) -> str:
    return "–" if value is None or math.isnan(value) else pattern.format(value)
