"""Rates: no more a minute than allowed beyond the first burst, first come first served, estimates settled."""

from __future__ import annotations

import asyncio

from epo_jax.api.limits import Bucket, RateLimit
from tests.api.conftest import outcomes
from tests.api.scripted_time import JumpingTime, SteppedTime


def test_a_bucket_gives_at_once_what_it_holds_and_then_at_its_rate():
    time = SteppedTime()
    bucket = Bucket(60, time.clock)
    assert [bucket.take(1) for _ in range(62)] == [0.0] * 60 + [1.0, 2.0]
    time.seconds = 30.0
    assert bucket.take(1) == 0.0
    bucket.give_back(1000)
    assert [bucket.take(1) for _ in range(61)][-2:] == [0.0, 1.0], "it holds no more than a minute's worth"
    assert Bucket(0, time.clock).take(10**9) == 0.0


def test_a_demand_beyond_the_bucket_waits_until_it_would_be_full_enough():
    bucket = Bucket(60, SteppedTime().clock)
    assert bucket.take(180) == 120.0


def test_requests_a_minute_over_a_long_time():
    async def scene() -> None:
        time, begun = SteppedTime(), list[float]()
        limit = RateLimit(30, 0, time.clock)

        async def one() -> None:
            await limit.wait(100)
            begun.append(time.seconds)

        tasks = [asyncio.create_task(one()) for _ in range(100)]
        await time.advance(600)
        await asyncio.gather(*tasks)
        assert begun == sorted(begun)
        for minute in range(1, 10):
            assert sum(60 * minute - 60 < at <= 60 * minute for at in begun) <= 30
        assert begun[-1] == 140.0  # 30 at once, 70 more at one in 2 s

    asyncio.run(scene())


def test_tokens_are_estimated_and_then_settled():
    async def scene() -> None:
        time = SteppedTime()
        limit = RateLimit(0, 600, time.clock)
        await limit.wait(600)
        limit.settle(600, 100)
        await limit.wait(500)  # no wait: the first used but 100
        late = asyncio.create_task(limit.wait(100))
        await time.advance(9.9)
        assert not late.done()
        await time.advance(0.2)
        assert late.done()

    asyncio.run(scene())


def test_who_is_cancelled_takes_nothing():
    async def scene() -> None:
        time = SteppedTime()
        limit = RateLimit(60, 60, time.clock)
        await limit.wait(60)
        waiting = asyncio.create_task(limit.wait(60))
        await time.advance(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        next_one = asyncio.create_task(limit.wait(1))
        await time.advance(1.0)
        assert next_one.done()

    asyncio.run(scene())


def test_the_client_keeps_to_its_rate(server, make_client):
    time = JumpingTime()
    outcomes(make_client(clock=time.clock, requests_per_minute=10, concurrency=1), *map(str, range(15)))
    assert time.seconds == 30.0 and len(server.requests) == 15
