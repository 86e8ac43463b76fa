"""The page while the run goes on: served to this machine alone, made anew when files change, and not too often."""

from __future__ import annotations

import asyncio
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
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"kind": "step", "step": 9, "time": 1.0, "loss": 0.5}\n')
        assert (await get(address + "version"))[1] == first  # too soon
        clock.now += SECONDS_BETWEEN
        second = (await get(address + "version"))[1]
        assert second != first and f'"{second}"' in (await get(address))[1]
        with open(folder / "metrics.jsonl", "a") as file:
            file.write("no JSON\n")
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


def test_a_browser_loads_it_again(browser: Browser, tmp_path: pathlib.Path) -> None:
    """What was shown is shown again: here the episodes of one environment."""
    folder, clock = make_run(tmp_path / "run", rounds=1, episodes=5), Clock()

    async def watch() -> None:
        async with serving(Watched(RunPage(folder), clock), 0) as address:
            at = f"{address}#episodes?environment=alfworld"
            await asyncio.to_thread(browser.open, at)
            await asyncio.to_thread(browser.until, "document.querySelector('.view > .note').textContent.includes('of 21 episodes')")
            first = folder / "evaluation" / "round_000.jsonl"
            (folder / "evaluation" / "round_002.jsonl").write_bytes(first.read_bytes())
            clock.now += SECONDS_BETWEEN
            await asyncio.to_thread(browser.until, "(document.querySelector('.view > .note')?.textContent ?? '').includes('of 29 episodes')")
            assert await asyncio.to_thread(browser.run, "return location.hash") == "#episodes?environment=alfworld"
            assert browser.complaints() == []
            await asyncio.to_thread(browser.driver.get, "about:blank")

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
