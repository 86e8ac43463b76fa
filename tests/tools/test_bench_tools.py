"""The measuring tools measure what they say: equal work on all sides, tables that can be drawn. No times are asserted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tools import bench_checkpoint, bench_env, bench_generate, bench_play, generate_peers, measurement


def run(tool: Any, capsys: pytest.CaptureFixture, *arguments: str) -> dict[str, Any]:
    """What the tool says as JSON; its table is drawn too."""
    assert tool.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tool.show(result)
    assert str(result["machine"]["cores"]) in capsys.readouterr().out
    return result


def test_generating_is_the_same_work_for_all_sides(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--episodes=2", "--turns=3", "--new_tokens=3", "--prefill=12", "--steps=3", "--batch=2")
    result = run(bench_generate, capsys, "--quick", "--checkpoint=mini", "--reading_batch", *sizes)
    ours, kept, alone, batch = result["sides"]
    assert [side["equal_tokens"] for side in result["sides"]] == [1.0] * 4
    assert alone["read_share"] == batch["read_share"] == 1.0 > kept["read_share"] >= ours["read_share"] > 0
    sampled = result["script"]["sampled_tokens"]
    assert sampled == 2 * 3 * 3
    for side in result["sides"]:
        assert math.isclose(side["tokens_per_second"]["median"] * side["seconds"]["median"], sampled)
        assert math.isclose(side["ours_to_this"]["median"], side["seconds"]["median"] / ours["seconds"]["median"])
    assert [(row["figure"], row["batch"]) for row in result["figures"]] == [("prefill", 1), ("decode", 1), ("prefill", 2), ("decode", 2)]
    assert all(row["bandwidth_share"]["median"] > 0 for row in result["figures"] if row["figure"] == "decode")


def test_wrong_settings_are_told(capsys: pytest.CaptureFixture) -> None:
    for arguments, words in (
        (["--checkpoint=random"], "random weights"),
        (["--checkpoint=mini", "--quick", "--turns=400"], "fewer episodes or turns"),
        (["--checkpoint=mini", "--quick", '--engine={"slots_of_gold": 3}'], "slots_of_gold"),
        (["--checkpoint=mini", "--quick", "--llama_server=/nowhere"], ".gguf files alone"),
    ):
        assert bench_generate.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert bench_env.main(["--split=generated:eval"]) == 2 and "--env" in capsys.readouterr().err
    assert bench_play.main(["--preset=none"]) == 2 and "smollm2" in capsys.readouterr().err


def test_equal_tokens_are_counted_place_by_place() -> None:
    assert bench_generate.equal_share([[[1, 2], [3, 4]]], [[[1, 2], [4, 3]]]) == 0.5


def test_a_round_is_taken_apart(capsys: pytest.CaptureFixture) -> None:
    settings = ("--quick", "--episodes=6", "--slots=3", "--max_turns=2", "--actor_ms=1")
    literal, waits = run(bench_play, capsys, *settings)["ways"]
    for way in (literal, waits):
        assert all(way[share]["median"] > 0 for share in bench_play.SHARES)
        assert way["compilations"]["max"] == 0
        assert 0 < way["slots_busy"]["median"] <= 1 and 0 < way["rows_sampled"]["median"] <= 1
        assert 0 < way["read_share"]["median"] < 1
        assert way["strategist"]["median"] + way["judge"]["median"] <= 1
    assert literal["first_round_compilations"] > 0
    assert waits["actors_at_once"]["median"] > literal["actors_at_once"]["median"]


def test_every_environment_is_measured(capsys: pytest.CaptureFixture) -> None:
    rows = {row["environment"]: row for row in run(bench_env, capsys, "--quick", "--games=2", "--steps=5")["environments"]}
    assert set(rows) == {"alfworld", "sotopia", "webshop"}
    assert rows["alfworld"]["steps"] == 10 and rows["alfworld"]["games"] == 2
    assert rows["alfworld"]["ours_to_original"] == rows["alfworld"]["steps_per_second"] / 10
    assert rows["sotopia"]["ours_to_original"] is None


def test_figures_are_told_with_their_spread() -> None:
    assert measurement.told(measurement.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])) == "3.00 (2.00–4.00)"
    assert measurement.told(None) == "" and measurement.told(measurement.spread([1.5]), "{:.1f}") == "1.5"


def test_a_float32_copy_of_a_gguf_file_has_the_same_weights(tmp_path) -> None:
    """What llama.cpp is given to compute with the numbers that the other sides have."""
    import numpy as np

    from epo_jax.model import gguf_weights
    from tests.model.test_gguf_weights import write

    write(tmp_path / "model.gguf")
    copy = generate_peers.float32_copy(tmp_path / "model.gguf", tmp_path / "copy.gguf")
    (config, params), (copied_config, copied) = gguf_weights.load(tmp_path / "model.gguf"), gguf_weights.load(copy)
    assert config == copied_config
    for name, array in params["layers"].items():
        np.testing.assert_array_equal(array, copied["layers"][name])


@pytest.mark.slow
def test_a_checkpoint_is_timed_and_comes_back(capsys: pytest.CaptureFixture) -> None:
    result = run(bench_checkpoint, capsys, "--quick", "--repeats=1", "--length=16")
    assert 0.5 < result["bytes"] / (3 * 4 * result["parameters"]) < 1.1  # parameters and two moments, compressed
    plain, whole, meanwhile = result["steps"]
    assert plain["blocked"]["max"] < meanwhile["blocked"]["median"] <= meanwhile["written"]["median"] and whole["written"]["median"] > 0
