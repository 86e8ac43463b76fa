"""The run page in a real browser: it says of which weights and of whom a figure or an episode is."""

from __future__ import annotations

import pathlib

from epo_jax.model.tokenizer import Tokenizer
from epo_jax.report.page.run_page import RunPage
from epo_jax.trajectory import write_jsonl
from tests.report.conftest import Browser
from tests.report.page_runs import MINI, demonstrations, episode, make_run


def test_a_failed_evaluation_is_not_passed_over(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder, tokenizer = make_run(tmp_path / "run", rounds=2), Tokenizer.load(MINI)
    lost = [episode(tokenizer, task, turns=0, environment="alfworld", task_id=f"eval/{task}", masked="actor failed: ?") for task in range(8)]
    write_jsonl(folder / "evaluation" / "round_002.jsonl", lost)
    page = RunPage(folder).write().as_uri()
    browser.open(page)
    tile = next(text for text in browser.texts(".tile") if "alfworld: success, held out" in text)
    assert "before the first round, 95 % interval" in tile and tile.endswith("after round 2: –, every episode failed")
    browser.open(f"{page}#evaluation")
    assert any("after round 2" in text and "every episode failed" in text for text in browser.texts("tr"))
    write_jsonl(folder / "evaluation" / "round_000.jsonl", lost)
    browser.open(RunPage(folder).write().as_uri())
    assert any("held out–every episode failed" in text for text in browser.texts(".tile"))
    assert browser.complaints() == []


def test_an_expert_s_demonstrations_are_not_the_strategist_s(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1, **{"credit.estimator": "bc"})
    write_jsonl(folder / "trajectories" / "round_000.jsonl", demonstrations(Tokenizer.load(MINI)))
    page = RunPage(folder).write().as_uri()
    browser.open(page)
    assert any("of the expert's, demonstrations" in text for text in browser.texts(".tile"))
    browser.open(f"{page}#episodes?open=1.0")
    browser.until("document.querySelector('.episode .turns li')")
    assert any("round 1, expert, demonstrations" in text for text in browser.texts(".row .about"))
    speakers = set(browser.texts(".turn .speaker"))
    assert "Expert" in speakers and "Strategist" not in speakers
    assert browser.run("return Array.from(document.querySelectorAll('input[name=tint]'), (input) => input.value)") == ["weight", "none"]
    assert browser.texts(".legend") == ["These tokens have no log-probabilities: nobody sampled them."]
    browser.open(f"{page}#episodes?open=0.0")
    browser.until("document.querySelector('.episode .turns li')")
    assert len(browser.texts("input[name=tint]")) == 4
    assert browser.complaints() == []
