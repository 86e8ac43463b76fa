"""One client in several event loops, one after the other; and nothing is left behind, be it at the end, on close, or on Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading

import pytest

from epo_jax.api.cache import ReplyCache
from tests.api import scripted_server as give
from tests.api.conftest import outcomes, question

pytestmark = pytest.mark.filterwarnings("error")  # an unclosed socket is one


def test_several_loops_one_after_the_other(server, make_client):
    client = make_client(concurrency=2)
    for phase in range(3):
        assert [reply.text for reply in outcomes(client, *[f"{phase}-{i}" for i in range(6)])] == ["ok"] * 6
        gc.collect()
    assert client.totals.answered == len(server.requests) == 18


def test_connections_are_kept_within_a_loop_and_closed_with_it(server, make_client):
    client = make_client(concurrency=2)
    seen: list[int] = []

    async def phase() -> None:
        for i in range(5):
            await client.complete(question(str(i)))
        seen.append(server.open_connections)

    asyncio.run(phase())
    assert seen == [1], "five calls in a row, one connection"
    wait_until_closed(server)


def test_closed_and_used_again(server, make_client):
    client = make_client()

    async def twice() -> None:
        for i in range(2):
            await client.complete(question(str(i)))
            await client.close()
            await client.close()

    asyncio.run(twice())
    wait_until_closed(server)
    assert outcomes(client, "again")[0].text == "ok"


def test_a_loop_that_ends_in_the_middle_leaves_the_client_usable(server, make_client, tmp_path):
    hanging = threading.Event()

    def hang(body):
        hanging.set()
        return give.hang()

    server.otherwise = hang
    client = make_client(cache=ReplyCache(tmp_path / "r.sqlite"), concurrency=1)
    server.on_hang = lambda body: None

    async def left() -> None:
        calls = [asyncio.create_task(client.complete(question(str(i))), name=str(i)) for i in range(3)]
        await asyncio.to_thread(hanging.wait)
        assert not any(call.done() for call in calls)

    asyncio.run(left())
    server.otherwise = lambda body: give.good("later")
    assert [reply.text for reply in outcomes(client, "0", "1", "2")] == ["later"] * 3
    gc.collect()


PROGRAM = """
import asyncio, sys
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings

async def main(url, folder):
    client = ApiClient(ApiSettings(model="m", base_url=url), cache=ReplyCache(folder + "/r.sqlite"), budget=Budget(path=folder + "/s.sqlite"))
    await asyncio.gather(*(client.complete([{"role": "user", "content": str(i)}]) for i in range(8)))

try:
    asyncio.run(main(*sys.argv[1:]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_leaves_nothing_half_done(server, tmp_path):
    hanging = threading.Semaphore(0)

    def half_of_them(body):
        if int(body["messages"][0]["content"]) % 2:
            hanging.release()
            return give.hang()
        return give.good()

    server.otherwise = half_of_them
    process = subprocess.Popen(
        [sys.executable, "-W", "always::ResourceWarning", "-c", PROGRAM, server.url, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(4):
        hanging.acquire()
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("interrupted\n", "") and process.returncode == 0
    assert len(ReplyCache(tmp_path / "r.sqlite")) <= 4
    assert sorted(path.name for path in tmp_path.iterdir() if "-" not in path.name) == ["r.sqlite", "s.sqlite"]


def wait_until_closed(server: give.ScriptedServer) -> None:
    """The server's threads see the end of a connection a moment after the client closed it."""
    for thread in list(server._server._threads or ()):
        thread.join(timeout=30.0)
    assert server.open_connections == 0
