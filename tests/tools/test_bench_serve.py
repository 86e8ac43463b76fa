"""The tool that measures serving: its figures belong to the requests that it made."""

from __future__ import annotations

import json

import pytest

from tools.bench_serve import main


@pytest.mark.slow
def test_its_figures(capsys: pytest.CaptureFixture) -> None:
    assert main(["--clients=4", "--requests=8", "--slots=4", "--max_tokens=3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for row, clients, requests in ((result["alone"], 1, 2), (result["together"], 4, 8)):
        assert (row["clients"], row["requests"]) == (clients, requests)
        assert 1 <= row["tokens_per_second"] / row["requests_per_second"] <= 3 + 1e-9  # both are quotients by the same seconds
        assert 0 < row["median_seconds"] <= row["p95_seconds"]
    assert result["ratio"] == result["together"]["requests_per_second"] / result["alone"]["requests_per_second"]


def test_a_server_that_is_not_there_is_told(capsys: pytest.CaptureFixture) -> None:
    assert main(["--url=http://127.0.0.1:9/v1"]) == 2
    assert "http://127.0.0.1:9/v1" in capsys.readouterr().err
