"""The end of a round, as a terminal and as a log file show it."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from epo_jax.report import console
from epo_jax.report.console import API_ROWS, EPISODE_ROWS, ROUND_ROWS, report_round, time_left

ENVIRONMENTS = ("alfworld", "sotopia", "webshop")


@pytest.fixture
def values() -> dict[str, float]:
    """Every figure that a round may have, of three environments."""
    found = {name: 12345.678 if pattern == "{:.0f}" else 0.4567 for _, name, pattern in EPISODE_ROWS}
    found |= {f"{environment}/{name}": value for environment in ENVIRONMENTS for name, value in found.items()}
    for _, names, _ in (*ROUND_ROWS, *API_ROWS):
        found |= {name: 1234.5 for name in ([names] if isinstance(names, str) else names)}
    return found


def shown(monkeypatch: pytest.MonkeyPatch, values: dict[str, float], *, terminal: bool) -> list[str]:
    text = io.StringIO()
    monkeypatch.setattr(
        console, "console", Console(file=text, width=80, force_terminal=terminal, no_color=True, highlight=False, soft_wrap=True, emoji=False)
    )
    report_round(3, 10, values)
    return re.sub(r"\x1b\[\d*m", "", text.getvalue()).splitlines()


def test_no_line_of_the_table_is_wrapped_at_80_columns(monkeypatch: pytest.MonkeyPatch, values: dict[str, float]) -> None:
    lines = shown(monkeypatch, values, terminal=True)
    labels = [label for label, _, _ in (*EPISODE_ROWS, *ROUND_ROWS, *API_ROWS)]
    assert len(lines) == 2 + len(labels)  # title and header besides
    for label in labels:
        (line,) = [line for line in lines if line.strip().startswith(f"{label}  ")]
        assert "…" not in line and any(character.isdigit() for character in line.removeprefix(label))
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_the_time_left_is_that_of_the_rounds_left_at_this_pace() -> None:
    seconds = {"seconds_play": 20.0, "seconds_judge": 1.0, "seconds_learn": 9.0}
    assert [time_left(rounds, seconds) for rounds in (0, 1, 2, 4, 240)] == ["", "about 30 s", "about 60 s", "about 2 min", "about 2.0 h"]
    assert time_left(3, {"seconds_play": 20.0}) == ""


def test_without_a_terminal_a_round_is_one_line(monkeypatch: pytest.MonkeyPatch, values: dict[str, float]) -> None:
    del values["api_spent_money"]
    values["logprob_gap"] = math.nan
    (line,) = shown(monkeypatch, values, terminal=False)
    assert line == (
        "round 3 of 10, about 7.2 h left: success 45.7%, reward 0.457, masked 12346, strategy 0.5 tokens, gradient 1234.500, played 1234 tokens/s, "
        "learned 1234 tokens/s, alfworld: success 45.7% reward 0.457, sotopia: success 45.7% reward 0.457, webshop: success 45.7% reward 0.457"
    )
