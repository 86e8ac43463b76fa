"""The page while the run goes on: served to this machine alone, made anew when files change, and not too often or under a person's hands."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from selenium.webdriver.common.keys import Keys

from epo_jax.errors import UserError
from epo_jax.report.page.run_page import RunPage
from epo_jax.report.page.watch import SECONDS_BETWEEN, Watched, serving
from tests.report.conftest import Browser
from tests.report.page_runs import make_run

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    def run(tmp_path: pathlib.Path) -> None:
        asyncio.run(test(tmp_path))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def append(path: pathlib.Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


async def get(address: str, **headers: str) -> tuple[int, str, Any]:
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


@in_loop
async def test_only_its_own_names_are_answered(tmp_path: pathlib.Path) -> None:
    watched = Watched(RunPage(make_run(tmp_path / "run", rounds=1)))
    async with serving(watched, 0) as address:
        port = address.rstrip("/").rpartition(":")[2]
        assert address == f"http://127.0.0.1:{port}/"
        status, text, headers = await get(address)
        assert status == 200 and text.startswith("<!doctype html>") and headers["Cache-Control"] == "no-store"
        assert (await get(address, Host=f"localhost:{port}"))[0] == 200
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"0.0.0.0:{port}"):
            status, text, _ = await get(address, Host=host)
            assert status == 403 and "<" not in text
            assert (await get(address + "version", Host=host))[0] == 403
        assert (await get(address + "config.json"))[0] == (await get(address + "../config.json"))[0] == 404
        async with aiohttp.ClientSession() as session, session.post(address) as answer:
            assert answer.status == 405


@in_loop
async def test_a_newer_page_when_files_change_but_not_too_often(tmp_path: pathlib.Path) -> None:
    folder, clock = make_run(tmp_path / "run", rounds=1), Clock()
    watched = Watched(RunPage(folder), clock)
    async with serving(watched, 0) as address:
        first = (await get(address + "version"))[1]
        html = (await get(address))[1]
        assert f'"{first}"' in html and "connect-src 'self'" in html
        append(folder / "metrics.jsonl", '{"kind": "step", "step": 9, "time": 1.0, "loss": 0.5}\n')
        append(folder / "metrics.jsonl", '{"kind": "round", "step": 2, "time": 2.0, "ent')
        assert (await get(address))[1] == html  # too soon
        clock.now += SECONDS_BETWEEN
        assert (await get(address + "version"))[1] == first and (await get(address))[1] != html  # no round is over; who asks gets what there is
        append(folder / "metrics.jsonl", 'ropy": 0.5}\n')
        assert (await get(address + "version"))[1] == first  # too soon
        clock.now += SECONDS_BETWEEN
        second = (await get(address + "version"))[1]
        assert second != first and f'"{second}"' in (await get(address))[1]
        (folder / "config.json").write_text("no JSON")
        append(folder / "metrics.jsonl", '{"kind": "round", "step": 3, "time": 3.0}\n')
        clock.now += SECONDS_BETWEEN
        assert (await get(address + "version"))[1] == second  # what is damaged leaves the last that was whole


@in_loop
async def test_where_it_cannot_listen_and_where_there_is_no_run(tmp_path: pathlib.Path) -> None:
    watched = Watched(RunPage(tmp_path))
    async with serving(watched, 0) as address:
        status, text, _ = await get(address)
        assert status == 503 and "there is no run in" in text
        with pytest.raises(UserError, match="choose another --port"):
            async with serving(watched, int(address.rstrip("/").rpartition(":")[2])):
                pass


def test_a_browser_loads_it_again_when_a_round_is_over(browser: Browser, tmp_path: pathlib.Path) -> None:
    """And not for an episode that ends, nor while somebody types or reads; what was shown is shown again, with its tint and as it was scrolled."""
    folder, clock = make_run(tmp_path / "run", rounds=1, episodes=60, turns=6), Clock()
    rounds = iter(range(2, 9))
    asked = "performance.getEntriesByType('resource').filter((each) => each.name.endsWith('/version')).length"

    def appended(path: pathlib.Path, text: str, *, loads: bool) -> None:
        """What the page does about it, after it has asked twice or is loaded again."""
        before = browser.run(f"window.stays = true; return {asked}")
        append(path, text)
        clock.now += SECONDS_BETWEEN
        if loads:
            browser.until("window.stays === undefined && document.documentElement.dataset.ready === 'true'")
        else:
            browser.until(f"{asked} >= arguments[0]", before + 2)
            assert browser.run("return window.stays")

    def round_over(*, loads: bool) -> None:
        row = {"kind": "round", "step": next(rounds), "time": 1795219300.0, "entropy": 0.3}
        appended(folder / "metrics.jsonl", json.dumps(row) + "\n", loads=loads)

    def use(address: str) -> None:
        episodes = folder / "trajectories" / "round_000.jsonl"
        line = episodes.read_text().splitlines(keepends=True)[0]
        browser.open(f"{address}#episodes?environment=alfworld")
        browser.until("document.querySelector('.row') !== null")
        appended(episodes, line, loads=False)
        browser.run("document.querySelector('.list').scrollTop = 500")
        round_over(loads=True)
        browser.until("document.querySelector('.list').scrollTop === 500")
        assert browser.run("return location.hash") == "#episodes?environment=alfworld"

        browser.press("/")
        round_over(loads=False)  # the search field has the focus
        browser.until("document.querySelector('#newer').textContent === 'newer dataload it r'")
        browser.press(Keys.ESCAPE, "r")
        browser.until("window.stays === undefined && document.documentElement.dataset.ready === 'true'")
        assert browser.texts("#newer") == [""]

        browser.until("document.querySelector('.row') !== null")
        browser.run("document.querySelector('.row').click()")
        browser.until("document.querySelector('.episode') !== null")
        browser.run("document.querySelector('input[value=numbers]').click()")
        round_over(loads=True)  # it is open, though nobody has gone on in it
        browser.until("document.querySelectorAll('.numbered').length > 0")
        browser.until("document.querySelector('.opened').scrollHeight > document.querySelector('.opened').clientHeight + 200")
        browser.run("document.querySelector('.opened').scrollTop = 200")
        round_over(loads=False)
        browser.run("document.querySelector('#newer button').click()")
        browser.until("window.stays === undefined && document.querySelector('.opened')?.scrollTop === 200")
        assert browser.run("return document.querySelector('input[value=numbers]').checked")
        assert browser.complaints() == []
        browser.driver.get("about:blank")

    async def watch() -> None:
        async with serving(Watched(RunPage(folder), clock), 0) as address:
            await asyncio.to_thread(use, address)

    asyncio.run(watch())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_stops_when_asked_to(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    folder = make_run(tmp_path / "run", rounds=1)
    command = [sys.executable, "-m", "epo_jax.report", f"--run={folder}", "--watch", "--port=0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        address = re.match(r"(http://127\.0\.0\.1:\d+/) shows", process.stdout.readline())[1]
        assert asyncio.run(get(address))[0] == 200
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in stderr
    assert not (folder / "page.html").exists()


@pytest.mark.slow
def test_the_command_writes_the_page_or_says_why_not(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "epo_jax.report", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    done = run(f"--run={folder}")
    assert done.returncode == 0 and "open it in a browser" in done.stdout and (folder / "page.html").stat().st_size > 50_000
    refused = run(f"--run={folder}", "--evaluations=nowhere")
    assert refused.returncode == 2 and "no evaluation in nowhere" in refused.stderr and "Traceback" not in refused.stderr
