"""The learning curve: what of the metrics becomes a point, and that the picture shows these points."""

from __future__ import annotations

import json
import pathlib

import matplotlib.image
import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.report import curve
from epo_jax.report.curve import Point


def evaluation(step: int, **values: object) -> dict[str, object]:
    return {"kind": "evaluation", "step": step, **{name.replace("__", "/"): value for name, value in values.items()}}


WEBSHOP = ("webshop__reward", "webshop__reward_low", "webshop__reward_high")
ROWS = [
    evaluation(0, sotopia__goal=3.0, sotopia__goal_low=2.5, sotopia__goal_high=3.5),
    {"kind": "round", "step": 1, "sotopia/goal": 9.0, "sotopia/goal_low": 9.0, "sotopia/goal_high": 9.0},
    evaluation(2, sotopia__goal=4.0, sotopia__goal_low=3.5, sotopia__goal_high=4.5),
    evaluation(1, sotopia__goal=None, sotopia__goal_low=None, sotopia__goal_high=None),
    evaluation(2, sotopia__goal=5.0, sotopia__goal_low=4.5, sotopia__goal_high=5.5, **dict(zip(WEBSHOP, (0.5, 0.4, 0.6), strict=True))),
]


def test_the_later_of_two_evaluations_of_a_round_counts_and_one_without_a_figure_is_no_point() -> None:
    assert curve.points(ROWS) == {
        "sotopia": [Point(0, 3.0, 2.5, 3.5), Point(2, 5.0, 4.5, 5.5)],
        "webshop": [Point(2, 0.5, 0.4, 0.6)],
    }


def test_an_environment_of_one_s_own_is_judged_by_its_reward() -> None:
    values = {"guess__success": 0.25, "guess__reward": 0.5, "guess__reward_low": 0.25, "guess__reward_high": 0.75}
    assert curve.points([evaluation(3, **values)]) == {"guess": [Point(3, 0.5, 0.25, 0.75)]}


def test_each_environment_has_a_panel_with_its_means_its_band_and_its_best() -> None:
    goals = [Point(0, 3.0, 2.5, 3.5), Point(1, 5.0, 4.0, 6.0), Point(2, 4.0, 3.0, 4.5)]
    figure = curve.draw({"sotopia": goals, "webshop": [Point(0, 0.5, 0.4, 0.6)]})
    sotopia, webshop = figure.axes
    assert (sotopia.get_title(), sotopia.get_ylabel()) == ("sotopia", "goal, 0 to 10")
    means = sotopia.get_lines()[0]
    assert list(means.get_xdata()) == [0, 1, 2] and list(means.get_ydata()) == [3.0, 5.0, 4.0]
    corners = {tuple(corner) for corner in sotopia.collections[0].get_paths()[0].vertices}
    assert {(0, 2.5), (0, 3.5), (1, 4.0), (1, 6.0), (2, 3.0), (2, 4.5)} <= corners
    best = next(line for line in sotopia.get_lines() if line.get_label() == "best")
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1], [5.0])
    assert webshop.get_title() == "webshop" and list(webshop.get_lines()[0].get_ydata()) == [0.5]


def test_the_picture_is_written_whole_and_grey_and_a_torn_line_is_no_harm(tmp_path: pathlib.Path) -> None:
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curve.png"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"kind": "evalu')
    curve.save(metrics, picture)
    image = matplotlib.image.imread(picture)[:, :, :3]
    assert image.shape[1] > image.shape[0] > 300  # two panels beside each other
    assert np.ptp(image, axis=2).max() < 0.02  # no colour carries meaning
    assert (image < 0.1).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]


def test_without_an_evaluation_nothing_is_drawn_and_a_refusing_disk_is_one_sentence(tmp_path: pathlib.Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps(ROWS[1]) + "\n")
    curve.save(metrics, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    metrics.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match="cannot write .*curve.png"):
        curve.save(metrics, tmp_path / "missing" / "curve.png")
