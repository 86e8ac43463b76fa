"""SOTOPIA's figures in an evaluation's tables: by dimension, by scenario, in a comparison, and what is refused as no score."""

from __future__ import annotations

import csv

import pytest

from epo_jax.errors import UserError
from epo_jax.evaluate import compare, results
from epo_jax.evaluate.folder import EvaluationFolder, write_table
from epo_jax.trajectory import write_jsonl
from tests.test_evaluation import SCORES, spoken

WHAT = {
    "strategist": {"mode": "vanilla", "name": "mini", "weights": "w"},
    "actor": "openai:m",
    "environments": {"sotopia": {"split": "all"}},
}
# combination → scenario, goal scores of the two seats
GOALS = {"A": ("park", 6, 2), "B": ("park", 10, 8), "C": ("sale", 1, 0), "D": ("sale", 1, 2), "E": ("taxi", 7, 7)}
CODENAMES = {"sale": "sell_bike"}  # the others' ids are their names


def folder(path, played):
    made = EvaluationFolder.open(path, WHAT, {})
    write_jsonl(made.episodes("sotopia"), played)
    (path / "results.json").write_text("{}")
    return made


def conversations():
    return [
        spoken(f"sotopia/{name}/{seat}", goals[seat], scenario=scenario, codename=CODENAMES.get(scenario, scenario))
        for name, (scenario, *goals) in GOALS.items()
        for seat in (0, 1)
    ]


def test_rows_by_dimension(tmp_path):
    made = folder(tmp_path / "e", [*conversations(), spoken("sotopia/F/0", 0, scenario="taxi", codename="taxi", masked="evaluator openai:m: no usable answer")])
    found = {row["figure"]: row for row in results.rows(made, made.read_episodes())}
    assert list(found)[1:9] == ["goal", *(name for name in SCORES if name != "goal"), "overall"] and "reward" not in found
    assert set(found) == {"success", "goal", "turns", "overall", *SCORES}
    assert all(row["n"] == 5 and row["episodes"] == 11 and row["masked"] == 1 for row in found.values())
    assert found["goal"]["mean"] == pytest.approx((4 + 9 + 0.5 + 1.5 + 7) / 5) and found["goal"]["low"] < found["goal"]["mean"] < found["goal"]["high"]
    assert found["social_rules"]["mean"] == found["social_rules"]["low"] == 0 and found["secret"]["mean"] == -2
    assert found["overall"]["mean"] == pytest.approx((9 + found["goal"]["mean"]) / 7)


def test_rows_by_scenario_and_what_people_see(tmp_path, capsys):
    made = folder(tmp_path / "e", [*conversations(), spoken("sotopia/F/0", 0, scenario="noon", codename="noon", masked="actor failed: no answer")])
    found = results.scenario_rows(made, made.read_episodes())
    goals = {row["scenario"]: (row["n"], row["mean"], row["low"], row["high"], row["episodes"]) for row in found if row["figure"] == "goal"}
    assert goals == {"park": (2, 6.5, 4.0, 9.0, 4), "sale": (2, 1.0, 0.5, 1.5, 4), "taxi": (1, 7.0, 7.0, 7.0, 2)}
    assert [row["mean"] for row in found if row["scenario"] == "noon"] == [None]  # all that was played there failed
    assert {row["figure"] for row in found} == {"success", "overall", *SCORES}
    write_table(tmp_path / "scenarios", {}, found)
    with open(tmp_path / "scenarios.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(found) == 3 * 9 + 1 and (table[0]["scenario"], table[-1]["codename"]) == ("noon", "taxi") and "seconds" not in table[0]
    results.show(made, results.rows(made, made.read_episodes()))
    results.show_scenarios(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert "goal (0 to 10) 5 4.40 [" in shown and "secret (-10 to 0) 5 -2.00 [-2.00, -2.00]" in shown and "overall (mean of the seven) 5 1.91" in shown
    assert shown.index("sell_bike (sale) 2 1.00 [0.50, 1.50] 1.43") < shown.index("park 2 6.50 [4.00, 9.00] 2.21") < shown.index("taxi 1 7.00")


def test_many_scenarios_are_shown_from_the_lowest(tmp_path, capsys):
    made = folder(tmp_path / "e", [spoken(f"sotopia/{number}/0", number % 11, scenario=f"s{number:02}", codename="a") for number in range(25)])
    results.show_scenarios(results.scenario_rows(made, made.read_episodes()))
    shown = capsys.readouterr().out
    assert "the 10 of 25 scenarios with the lowest goal scores" in shown and "s00" in shown and "s10" not in shown and shown.count("[") == 10


def test_a_comparison_pairs_combinations(tmp_path):
    this, other = folder(tmp_path / "a", conversations()), folder(tmp_path / "b", conversations()[:-2])
    found = {row["figure"]: row for row in compare.compare(this, other)}
    assert set(found) == {"success", "overall", *SCORES} and found["goal"]["n"] == 4 and found["goal"]["only_this"] == 1
    assert found["goal"]["difference"] == 0 and found["goal"]["p"] == 1
    compare.show(this, other, list(found.values()))


@pytest.mark.parametrize("scores", [{}, None, SCORES | {"goal": 11}, SCORES | {"charm": 1}, SCORES | {"secret": 0.5}, [1, 2], "goal"])
def test_scores_that_cannot_be_are_refused(tmp_path, scores):
    played = spoken("sotopia/A/0", 5)
    played.extra["scores"] = scores
    with pytest.raises(UserError, match=r"line 1 of .*sotopia\.jsonl"):
        folder(tmp_path / "e", [played]).read_episodes()
