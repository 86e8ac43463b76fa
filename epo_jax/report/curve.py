"""The learning curve of a run as a picture: each environment's main figure on the held-out tasks by round, with 95 % intervals.

It is drawn from the evaluation rows of `metrics.jsonl`, anew after every evaluation: the paper's Fig. 3 (goal completion by round of self-play).
"""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from epo_jax.errors import UserError
from epo_jax.evaluation import main_figure

WIDTH, HEIGHT = 3.4, 2.8  # inches a panel
DOTS_PER_INCH = 150
LABELS = {"goal": "goal, 0 to 10"}  # the others are shares


class Point(NamedTuple):
    """One evaluation: rounds learned before it, mean and interval."""

    round: int
    mean: float
    low: float
    high: float


def points(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Environment → its evaluations by round. Of a round that was evaluated twice (a run that was continued) the later row counts.

    An environment of whose episodes all failed in an evaluation has no point there.
    """
    found: dict[str, dict[int, Point]] = {}
    for row in rows:
        if row.get("kind") != "evaluation":
            continue
        for environment in {name.partition("/")[0] for name in row if "/" in name}:
            values = [row.get(f"{environment}/{main_figure(environment)}{end}") for end in ("", "_low", "_high")]
            if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                found.setdefault(environment, {})[row["step"]] = Point(row["step"], *values)
    return {environment: [by_round[round] for round in sorted(by_round)] for environment, by_round in sorted(found.items())}


def draw(curves: Mapping[str, list[Point]]) -> Figure:
    """A panel for each environment: black on white, so that it can be printed."""
    figure = Figure(figsize=(WIDTH * len(curves), HEIGHT), layout="constrained")
    for number, (environment, curve) in enumerate(curves.items(), start=1):
        _panel(figure.add_subplot(1, len(curves), number), environment, curve)
    return figure


def _panel(axes: Axes, environment: str, curve: list[Point]) -> None:
    rounds = [point.round for point in curve]
    axes.fill_between(rounds, [point.low for point in curve], [point.high for point in curve], color="0.85", linewidth=0, label="95 % interval")
    axes.plot(rounds, [point.mean for point in curve], color="black", marker="o", markersize=4, linewidth=1.2)
    axes.axhline(curve[0].mean, color="0.4", linestyle=":", linewidth=1, label="before learning" if rounds[0] == 0 else "first evaluation")
    best = max(curve, key=lambda point: point.mean)
    axes.plot([best.round], [best.mean], marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black", linestyle="none", label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(curve) == 1:  # a band needs two
        axes.vlines(rounds, curve[0].low, curve[0].high, color="0.6")
        axes.set_xlim(rounds[0] - 0.5, rounds[0] + 0.5)
    axes.set(title=environment, xlabel="rounds learned", ylabel=LABELS.get(main_figure(environment), main_figure(environment)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="best", edgecolor="none")


def save(metrics: pathlib.Path, picture: pathlib.Path) -> None:
    """Draws what `metrics` (a run's metrics.jsonl) holds into a PNG, which replaces the one before at once. Without any evaluation, nothing.

    Raises `UserError` if the disk refuses.
    """
    curves = points(_rows(metrics))
    if not curves:
        return
    image = io.BytesIO()
    FigureCanvasAgg(draw(curves)).print_figure(image, dpi=DOTS_PER_INCH)
    scratch = picture.with_name(f".{picture.name}.partial")
    try:
        scratch.write_bytes(image.getvalue())
        os.replace(scratch, picture)
    except OSError as error:
        raise UserError(f"cannot write {picture}: {error.strerror or error}; make room, the same command continues.") from error


def _rows(metrics: pathlib.Path) -> Iterable[dict[str, Any]]:
    """The rows of the file; a line torn by a kill is left out."""
    for line in metrics.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
