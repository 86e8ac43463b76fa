"""Replies on disk: asked once, kept through a kill, shared, damaged, replayed offline; and equal calls under way share one request."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest

from epo_jax.api.cache import Reply, ReplyCache, reply_key
from epo_jax.api.client import ApiError, NotInCache
from epo_jax.errors import UserError
from tests.api import scripted_server as give
from tests.api.conftest import outcomes, question

REPLY = Reply("the mug is\x00 on 日本 shelf 😀", 7, 3, False, "stop", None)


def test_the_key_tells_calls_apart_and_nothing_else():
    base = dict(model="m", messages=question(), parameters={"temperature": 0.7}, schema=None, salt="")
    key = reply_key(**base)
    others = [base | change for change in ({"model": "n"}, {"messages": question("?")}, {"parameters": {}}, {"schema": {}}, {"salt": "1"})]
    assert len({key, *(reply_key(**other) for other in others)}) == 6
    assert key == reply_key(**base | {"messages": [{"content": "where is the mug?", "role": "user"}]}), "the order of fields means nothing"



def test_a_reply_comes_back_as_it_was(tmp_path):
    cache = ReplyCache(tmp_path / "deeper" / "replies.sqlite")
    for key, reply in (("a", REPLY), ("b", dataclasses.replace(REPLY, text="", refusal="no", finish_reason="length"))):
        assert cache.find(key) is None
        assert cache.store(key, reply, "m") == reply
        assert cache.find(key) == dataclasses.replace(reply, cached=True)
    assert len(cache) == 2


def test_the_first_of_two_processes_decides(tmp_path):
    ours, theirs = ReplyCache(tmp_path / "r.sqlite"), ReplyCache(tmp_path / "r.sqlite")
    theirs.store("a", REPLY, "m")
    assert ours.store("a", dataclasses.replace(REPLY, text="something else"), "m") == REPLY


def test_two_processes_write_at_once(tmp_path):
    program = (
        "import sys; from epo_jax.api.cache import *; c = ReplyCache(sys.argv[1]);"
        "[c.store(f'{sys.argv[2]}{i}', Reply('x' * 1000, 1, 1, False, 'stop', None), 'm') for i in range(300)]"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "r.sqlite", name]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(ReplyCache(tmp_path / "r.sqlite")) == 600


def test_a_cached_call_asks_nobody_and_costs_nothing(server, make_client, tmp_path):
    first = make_client(cache=ReplyCache(tmp_path / "r.sqlite"))
    outcomes(first, "a", "b")
    second = make_client(cache=ReplyCache(tmp_path / "r.sqlite"), base_url=server.url.replace("127.0.0.1", "localhost"))
    replies = outcomes(second, "a", "b")
    assert [reply.cached for reply in replies] == [True, True] and len(server.requests) == 2
    assert second.totals.tries == second.budget.spent_tokens == second.totals.money == 0 and second.totals.cached == 2


def test_faults_are_not_kept(server, make_client, tmp_path):
    server.then(give.status(500), give.too_long(), give.status(400))
    client = make_client(cache=ReplyCache(tmp_path / "r.sqlite"), retries=2)
    (error,) = outcomes(client, "a")
    assert type(error) is ApiError and len(client.cache) == 0
    client.cache.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 100_000, "nothing of 10 MB stays"


@pytest.mark.parametrize("cached", [True, False])
def test_equal_calls_under_way_share_one_request(cached, server, make_client, tmp_path):
    arrived, go_on = threading.Event(), threading.Event()

    def slowly(body):
        arrived.set()
        go_on.wait()
        return give.good("once")

    server.otherwise = slowly
    client = make_client(cache=ReplyCache(tmp_path / "r.sqlite") if cached else None)

    async def several() -> list[Reply]:
        calls = [asyncio.create_task(client.complete(question("same")), name="same") for _ in range(20)]
        await asyncio.to_thread(arrived.wait)
        go_on.set()
        return await asyncio.gather(*calls)

    replies = asyncio.run(several())
    assert {reply.text for reply in replies} == {"once"} and len(server.requests) == 1
    assert sorted(reply.cached for reply in replies) == [False] + [True] * 19
    assert client.budget.spent_tokens == 15 and client.totals.cached == 19


def test_equal_calls_fail_together(server, make_client):
    server.then(give.good(), give.status(400, "too long"))
    client = make_client()
    outcomes(client, "short")
    errors = outcomes(client, *["same"] * 5)
    assert {type(error) for error in errors} == {ApiError} and len({id(error) for error in errors}) == 5
    assert len(server.requests) == 2 and client.totals.failed == 5


def test_when_the_leader_is_cancelled_another_leads(server, make_client):
    first = threading.Event()

    def hang_once(body):
        if not first.is_set():
            first.set()
            return give.hang()
        return give.good("after all")

    server.otherwise = hang_once
    client = make_client()
    server.on_hang = lambda body: None

    async def cancel_the_leader() -> list[object]:
        calls = [asyncio.create_task(client.complete(question("same")), name=str(i)) for i in range(3)]
        await asyncio.to_thread(first.wait)
        calls[0].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    leader, *others = asyncio.run(cancel_the_leader())
    assert isinstance(leader, asyncio.CancelledError) and [reply.text for reply in others] == ["after all"] * 2 and len(server.requests) == 2


BATCH = """
import asyncio, sys
from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings

async def main(url, folder):
    client = ApiClient(ApiSettings(model="m", base_url=url, concurrency=4, max_tokens=50), cache=ReplyCache(folder + "/r.sqlite"),
                       budget=Budget(path=folder + "/spent.sqlite"))
    async def one(i):
        reply = await client.complete([{"role": "user", "content": str(i)}])
        print(i, int(reply.cached), flush=True)
    await asyncio.gather(*(one(i) for i in range(40)))
    print("spent", client.budget.spent_tokens, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_after_a_kill_in_the_middle_nothing_answered_is_asked_again(server, tmp_path):
    count = threading.Semaphore(0)
    enough = threading.Event()

    def until_enough(body):
        count.release()
        return give.hang() if enough.is_set() else give.good("answer " + body["messages"][0]["content"])

    server.otherwise = until_enough
    command = [sys.executable, "-c", BATCH, server.url, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    handed_out = []
    for line in process.stdout:
        handed_out.append(line.split()[0])
        if len(handed_out) == 15:
            enough.set()  # whatever comes now is under way when the kill comes
            break
    for _ in range(len(handed_out)):
        count.acquire()
    process.send_signal(signal.SIGKILL)
    handed_out += [line.split()[0] for line in process.stdout]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()

    asked_before = len(server.requests)
    server.otherwise = lambda body: give.good("answer " + body["messages"][0]["content"])
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    asked_again = {request.body["messages"][0]["content"] for request in server.requests[asked_before:]}
    assert not asked_again & set(handed_out) and len(asked_again) >= 40 - asked_before
    lines = dict(line.split() for line in result.stdout.splitlines())
    assert {name for name, cached in lines.items() if cached == "1" and name != "spent"} == set(map(str, range(40))) - asked_again
    # 40 answers at 15 tokens each, and what was under way at the kill (at most 4) counts at the most that it may have cost
    under_way = int(lines["spent"]) - 15 * 40
    assert 0 <= under_way <= 4 * 250


def test_replay_offline(server, make_client, tmp_path, monkeypatch):
    outcomes(make_client(cache=ReplyCache(tmp_path / "r.sqlite")), "a")
    monkeypatch.delenv("OPENAI_API_KEY")
    offline = make_client(cache=ReplyCache(tmp_path / "r.sqlite", offline=True), base_url="https://nowhere.invalid/v1")
    known, unknown = outcomes(offline, "a", "b")
    assert known.text == "ok" and known.cached and type(unknown) is NotInCache and "r.sqlite" in str(unknown)
    assert len(server.requests) == 1 and offline.totals.tries == 0


def test_replay_from_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "shipped"
    cache = ReplyCache(folder / "r.sqlite")
    cache.store("a", REPLY, "m")
    cache.close()
    os.chmod(folder / "r.sqlite", stat.S_IRUSR)
    os.chmod(folder, stat.S_IRUSR | stat.S_IXUSR)
    try:
        shipped = ReplyCache(folder / "r.sqlite", offline=True)
        assert shipped.find("a").text == REPLY.text
        shipped.close()
        assert [path.name for path in folder.iterdir()] == ["r.sqlite"]
    finally:
        os.chmod(folder, stat.S_IRWXU)


def test_offline_without_a_file(tmp_path):
    with pytest.raises(UserError, match="there is no reply cache"):
        ReplyCache(tmp_path / "r.sqlite", offline=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_told_in_one_sentence_and_left_alone(tmp_path):
    path = tmp_path / "r.sqlite"
    cache = ReplyCache(path)
    for i in range(500):
        cache.store(str(i), dataclasses.replace(REPLY, text="x" * 200), "m")
    cache.close()
    whole = path.read_bytes()
    overwritten = whole[:4096] + b"\x55" * (len(whole) - 4096)
    cases = {"no database at all": b"hello " * 1000, "pages overwritten": overwritten, "cut off": whole[: len(whole) // 2]}
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^(the reply cache|cannot use the reply cache).*r\.sqlite") as told:
            damaged = ReplyCache(path)
            try:
                for i in range(500):
                    damaged.find(str(i))
            finally:
                damaged.close()
        assert "\n" not in str(told.value), name
        assert path.read_bytes()[4096:] == content[4096:], name


def test_another_programs_database_is_not_touched(tmp_path):
    path = tmp_path / "r.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    before = path.read_bytes()
    for offline in (False, True):
        with pytest.raises(UserError, match="another kind of database"):
            ReplyCache(path, offline=offline)
    assert path.read_bytes() == before


def test_a_row_of_the_wrong_type_is_damage(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    cache.store("a", REPLY, "m")
    cache._database.execute("UPDATE replies SET prompt_tokens = 'many'")
    with pytest.raises(UserError, match="damaged"):
        cache.find("a")


def test_a_folder_that_does_not_let_itself_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the reply cache"):
        ReplyCache(tmp_path / "file" / "r.sqlite")


def test_a_full_disk_stops_the_run_with_what_was_stored_intact(server, make_client, tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    client = make_client(cache=cache)
    outcomes(client, "a")
    cache._database.execute("PRAGMA max_page_count = 8")  # as if the disk held no more
    server.otherwise = lambda body: give.good("x" * 100_000)
    (error,) = outcomes(client, "b")
    assert type(error) is UserError and "full" in str(error)
    assert outcomes(client, "a")[0].cached
