"""The breaker pauses everyone, lets one probe through, closes or gives up; and a real outage is sat out without burning retries."""

from __future__ import annotations

import asyncio

import pytest

from epo_jax.api.breaker import LONGEST_PAUSE_S, Breaker
from epo_jax.api.client import ApiFatal
from tests.api import scripted_server as give
from tests.api.conftest import outcomes
from tests.api.scripted_time import SteppedTime, settle


def breaker(time: SteppedTime, **options: float) -> Breaker:
    return Breaker("the model m", **{"failures": 3, "pause_s": 10.0, "max_pauses": 3} | options, clock=time.clock)


def test_failures_in_a_row_open_it_and_a_probe_closes_it():
    async def scene() -> None:
        time = SteppedTime()
        it = breaker(time)
        for outcome in (it.failed, it.failed, it.succeeded, it.failed, it.failed):
            assert not await it.admit()
            outcome(False, *(["HTTP 500"] if outcome == it.failed else []))
        assert not it.open, "a success in between begins the count again"
        it.failed(False, "HTTP 500")
        assert it.open
        calls = [asyncio.create_task(it.admit()) for _ in range(5)]
        await time.advance(9.9)
        assert not any(call.done() for call in calls)
        await time.advance(0.2)
        assert [call.result() for call in calls if call.done()] == [True], "one probe passes, the others wait for what becomes of it"
        it.failed(False, "HTTP 500")  # one that was under way: changes nothing
        it.succeeded(False)
        assert it.open
        it.succeeded(True)
        await settle()
        assert sorted(call.result() for call in calls) == [False] * 4 + [True] and not it.open

    asyncio.run(scene())


def test_pauses_grow_and_then_it_gives_up():
    async def scene() -> None:
        time = SteppedTime()
        it = breaker(time)
        for _ in range(3):
            it.failed(False, "HTTP 500")
        for pause in (10.0, 20.0, 40.0):
            call = asyncio.create_task(it.admit())
            await time.advance(pause - 0.1)
            assert not call.done()
            await time.advance(0.2)
            assert call.result() is True
            waiting = asyncio.create_task(it.admit())
            await settle()
            it.failed(True, "HTTP 503")
            await settle()
            assert waiting.done() == (pause == 40.0)
            if not waiting.done():
                waiting.cancel()
        with pytest.raises(ApiFatal, match="3 pauses did not help .*HTTP 503"):
            await waiting
        with pytest.raises(ApiFatal):
            await it.admit()

    asyncio.run(scene())


def test_after_a_cancelled_probe_another_call_probes():
    async def scene() -> None:
        time = SteppedTime()
        it = breaker(time)
        for _ in range(3):
            it.failed(False, "HTTP 500")
        first, second = asyncio.create_task(it.admit()), asyncio.create_task(it.admit())
        await time.advance(10.0)
        assert first.result() is True and not second.done()
        it.abandoned(True)
        await settle()
        assert second.result() is True

    asyncio.run(scene())


@pytest.mark.parametrize("asked, pause", [(3.0, 10.0), (60.0, 60.0), (1e9, LONGEST_PAUSE_S)])
def test_a_pause_is_at_least_what_the_server_asks_for(asked, pause):
    async def scene() -> None:
        time = SteppedTime()
        it = breaker(time, failures=1)
        it.failed(False, "HTTP 429", asked)
        call = asyncio.create_task(it.admit())
        await time.advance(pause - 0.1)
        assert not call.done()
        await time.advance(0.2)
        assert call.done()

    asyncio.run(scene())


def test_an_outage_is_sat_out(server, time, make_client):
    """An outage of hours: every call is answered in the end, with one retry at most, and no pause counts against a deadline."""
    server.then(*[give.status(503)] * 20)
    client = make_client(breaker_failures=5, breaker_pause_s=800.0, breaker_max_pauses=20, retries=1, deadline_s=200.0, concurrency=1)
    replies = outcomes(client, *map(str, range(20)))
    assert [str(reply) for reply in replies if isinstance(reply, Exception)] == []
    assert len(server.requests) == 40 and client.totals.retries == 20, "the calls took turns in probing"
    assert client.totals.pauses == 16 and client.totals.seconds_paused >= 800.0 + 15 * 900.0 and not client.paused


def test_a_server_that_stays_away_stops_the_run(server, make_client):
    server.otherwise = lambda body: give.status(503, "down for good")
    client = make_client(breaker_failures=4, breaker_pause_s=1.0, breaker_max_pauses=3, retries=100, deadline_s=1e6)
    errors = outcomes(client, *map(str, range(20)))
    assert {type(error) for error in errors} == {ApiFatal} and "down for good" in str(errors[0])
    assert len(server.requests) <= 16 + 3 + 3, "those under way when it opened, those in the places of the first to fail, and the probes"
