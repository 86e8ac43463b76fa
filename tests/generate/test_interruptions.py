"""The engine where a call is cancelled, a device fails, an event loop ends, or what is asked makes no sense: nobody waits for ever, and it goes on."""

from __future__ import annotations

import asyncio
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from tests.generate.small_engine import engine, small_buckets  # noqa: F401
from tests.generate.small_engine import converse, converse_all, make_engine, make_params, rescore, samples


def test_a_cancelled_call_frees_its_slot_and_leaves_its_session_as_it_was() -> None:
    with make_engine(slots=2) as engine:

        async def scenario() -> None:
            first = engine.open(1)
            await engine.generate(first, [10, 11], Sampling(max_new_tokens=3))
            kept = list(first.tokens)
            call = asyncio.create_task(engine.generate(first, [13], Sampling(max_new_tokens=60)))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert first.tokens == kept and engine.busy_slots == 0
            resumed = await asyncio.wait_for(engine.generate(first, [13], Sampling(max_new_tokens=5)), 30)
            begin = len(first.tokens) - len(resumed.tokens)
            np.testing.assert_allclose(resumed.logprobs, rescore(make_params(), first.tokens, begin, len(first.tokens)), atol=1e-4)

        asyncio.run(scenario())


def test_a_call_cancelled_between_answer_and_hearing_counts_as_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_engine(slots=2) as engine:

        async def scenario() -> None:
            session = engine.open(1)
            await engine.generate(session, [10, 11], Sampling(max_new_tokens=3))
            kept = list(session.tokens)
            call = asyncio.create_task(engine.generate(session, [13], Sampling(max_new_tokens=3)))
            accept = engine._pump.accept

            def accept_and_cancel(request, *sampled) -> None:
                accept(request, *sampled)
                if request.answer.done():
                    call.cancel()

            monkeypatch.setattr(engine._pump, "accept", accept_and_cancel)
            with pytest.raises(asyncio.CancelledError):
                await call
            assert session.tokens == kept
            assert engine.busy_slots == 0

        asyncio.run(scenario())


def test_a_failure_reaches_every_caller_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_engine(slots=2) as engine:
        healthy = asyncio.run(converse_all(engine, range(2)))

        def broken(*_args, **_options):
            raise OSError("the device is gone")

        with monkeypatch.context() as patch:
            patch.setattr(engine._device.programs, "decode", broken)

            async def all_fail() -> list:
                return await asyncio.wait_for(asyncio.gather(*(converse(engine, seed) for seed in range(4)), return_exceptions=True), 30)

            assert [str(error) for error in asyncio.run(all_fail())] == ["the device is gone"] * 4
        assert engine.busy_slots == 0
        assert [samples(one) for one in asyncio.run(converse_all(engine, range(2)))] == [samples(one) for one in healthy]


def test_damaged_weights_are_an_error_and_not_a_sample() -> None:
    params = make_params()
    with make_engine(params={**params, "final_norm": params["final_norm"] * jnp.nan}) as engine, pytest.raises(FloatingPointError, match="not finite"):
        engine.generate_batch([[7, 8]], Sampling(), [0])


def test_the_event_loop_runs_while_the_device_works(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    decode = engine._device.programs.decode

    def waits_for_a_coroutine(*args, **options):
        assert released.wait(timeout=20), "the event loop stood still while the device worked"
        return decode(*args, **options)

    monkeypatch.setattr(engine._device.programs, "decode", waits_for_a_coroutine)

    async def scenario() -> None:
        call = asyncio.create_task(converse(engine, 0, turns=1))
        await asyncio.sleep(0.05)
        assert not call.done()
        released.set()
        await call

    asyncio.run(scenario())


def test_loops_that_were_broken_off_do_not_hurt_the_next(engine: Engine) -> None:
    expected = samples(asyncio.run(converse(engine, 3)))

    async def cut_off() -> None:
        tasks = [asyncio.create_task(converse(engine, seed)) for seed in range(12)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*tasks, return_exceptions=True))
        asyncio.create_task(converse(engine, 99))  # left alone: the end of asyncio.run cancels it
        await asyncio.sleep(0)

    asyncio.run(cut_off())
    assert samples(asyncio.run(converse(engine, 3))) == expected

    abandoned = asyncio.new_event_loop()  # closed without cancelling anything
    task = abandoned.create_task(converse(engine, 5))
    abandoned.run_until_complete(asyncio.sleep(0))
    abandoned.run_until_complete(asyncio.sleep(0))
    abandoned.close()
    assert samples(asyncio.run(converse(engine, 3))) == expected
    assert engine.busy_slots == 0
    task._log_destroy_pending = False


def test_bad_calls(engine: Engine) -> None:
    async def scenario() -> None:
        session = engine.open(0)
        with pytest.raises(UserError, match="no tokens"):
            await engine.generate(session, [])
        with pytest.raises(UserError, match="0..95"):
            await engine.generate(session, [96])
        call = asyncio.create_task(engine.generate(session, [7], Sampling(max_new_tokens=2)))
        await asyncio.sleep(0)
        with pytest.raises(UserError, match="already"):
            await engine.generate(session, [7])
        with pytest.raises(RuntimeError, match="being sampled"):
            engine.update_weights(make_params(), "1")
        await call
        engine.close(session)
        with pytest.raises(UserError, match="closed"):
            await engine.generate(session, [7])

    asyncio.run(scenario())
    with pytest.raises(UserError, match="max_length"):
        make_engine(max_length=257)
    finished = make_engine()
    finished.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        finished.open(0)


def test_shutdown_cancels_what_waits() -> None:
    engine = make_engine(slots=2, stop_ids=[])

    async def scenario() -> None:
        calls = [asyncio.create_task(engine.generate(engine.open(seed), [7], Sampling())) for seed in range(3)]  # the third waits for a slot
        await asyncio.sleep(0)
        engine.shutdown()
        assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*calls, return_exceptions=True))
        assert engine._pump.task.done()

    asyncio.run(scenario())
