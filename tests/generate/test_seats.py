"""Slots shared and given up: what is read once, who waits for whom, and that none of it changes what is sampled."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from epo_jax.generate.engine import Engine, Sampled, Sampling, Session
from epo_jax.generate.seats import Seats
from tests.generate.small_engine import converse, converse_all, make_engine, make_params, rescore, samples, small_buckets  # noqa: F401

INSTRUCTION = list(range(20, 60))  # a beginning that many sessions share
SHORT = dict(turns=2, longest=8, sampling=Sampling(max_new_tokens=6))


def lengths(conversations: list[tuple[Session, Any]]) -> int:
    return sum(len(session.tokens) - 1 for session, _ in conversations)


def test_a_shared_beginning_is_read_once_a_weights_version() -> None:
    with make_engine() as engine:
        alone = [asyncio.run(converse(engine, seed, **SHORT, beginning=INSTRUCTION)) for seed in range(2)]
        engine.update_weights(make_params(), "1")
        for version in ("2", "3"):
            before = engine.stats
            conversations = asyncio.run(converse_all(engine, range(8), **SHORT, beginning=INSTRUCTION))
            stats = {name: value - before[name] for name, value in engine.stats.items()}
            assert stats["shared_tokens"] >= 7 * (len(INSTRUCTION) // 16 * 16)  # in whole pieces
            assert stats["prefill_tokens"] + stats["shared_tokens"] + stats["decode_tokens"] == lengths(conversations)
            later = asyncio.run(converse(engine, 1000, **SHORT, beginning=INSTRUCTION))  # comes when the others are closed
            assert engine.stats["prefill_tokens"] - before["prefill_tokens"] - stats["prefill_tokens"] <= lengths([later]) - len(INSTRUCTION)
            assert [samples(one) for one in conversations[:2]] == [samples(one) for one in alone]
            for session, heard in [*conversations, later]:
                for begin, sampled in heard:
                    truth = rescore(make_params(), session.tokens, begin, begin + len(sampled.tokens))
                    np.testing.assert_allclose(sampled.logprobs, truth, atol=1e-4)
            engine.update_weights(make_params(), version)


def test_new_weights_forget_what_was_shared() -> None:
    with make_engine() as engine:
        asyncio.run(converse(engine, 0, **SHORT, beginning=INSTRUCTION))
        engine.update_weights(make_params(9), "1")
        session, heard = asyncio.run(converse(engine, 1, **SHORT, beginning=INSTRUCTION))
        for begin, sampled in heard:
            truth = rescore(make_params(9), session.tokens, begin, begin + len(sampled.tokens))
            np.testing.assert_allclose(sampled.logprobs, truth, atol=1e-4)


async def in_step(engine: Engine, seeds: range) -> list[list[Sampled]]:
    """Conversations of three turns in which nobody goes on before everyone has spoken: a session that held its slot for good
    would wait for those that wait for the slot."""
    barrier = asyncio.Barrier(len(seeds))

    async def one(seed: int) -> list[Sampled]:
        rng = np.random.default_rng(seed)
        session, heard = engine.open(seed), []
        for turn in range(3):
            new = [*(INSTRUCTION if turn == 0 else ()), *rng.integers(6, 96, 5).tolist()]
            heard.append(await engine.generate(session, new, Sampling(max_new_tokens=6)))
            await barrier.wait()
        engine.close(session)
        return heard

    return await asyncio.wait_for(asyncio.gather(*map(one, seeds)), 120)


@pytest.mark.parametrize("sharing", [True, False])
def test_sampling_does_not_depend_on_slots_neighbours_sharing_or_eviction(sharing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_engine() as engine:
        expected = [asyncio.run(in_step(engine, range(seed, seed + 1)))[0] for seed in range(3)]  # each alone
    if not sharing:
        monkeypatch.setattr("epo_jax.generate.pump.SMALLEST_SHARED", 10_000)
    for slots, seeds, evicts in ((8, range(8), False), (2, range(5), True), (8, range(11), True)):
        with make_engine(slots=slots) as engine:
            heard = asyncio.run(in_step(engine, seeds))
            assert (engine.stats["evictions"] > 0) == evicts
            assert engine.busy_slots == 0
        for one, other in zip(heard, expected, strict=False):
            assert [turn.tokens for turn in one] == [turn.tokens for turn in other]
            for turn, same in zip(one, other, strict=True):
                np.testing.assert_allclose(turn.logprobs, same.logprobs, atol=1e-5)


def test_sessions_that_never_rest_do_not_starve_the_others() -> None:
    """Two sessions call again the moment they are answered, and would keep both slots for ever."""
    with make_engine(slots=2, stop_ids=[]) as engine:
        answered = 0
        done = asyncio.Event()

        async def restless(seed: int) -> None:
            nonlocal answered
            while not done.is_set():
                session = engine.open(seed)
                for _ in range(20):
                    await engine.generate(session, [7], Sampling(max_new_tokens=1))
                    answered += not done.is_set()
                engine.close(session)

        async def patient() -> None:
            session = engine.open(9)
            await engine.generate(session, [8, 9], Sampling(max_new_tokens=2))
            await engine.generate(session, [8, 9], Sampling(max_new_tokens=2))
            done.set()
            engine.close(session)

        async def scenario() -> None:
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for seed in range(2):
                    group.create_task(restless(seed))
                await asyncio.sleep(0)
                group.create_task(patient())

        asyncio.run(scenario())
        assert 8 <= answered <= 24  # PATIENCE is 4 calls a slot, and its second call may have to wait as long


def test_long_prompts_do_not_stall_those_that_are_being_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: between two chunks of decoding, no more is read than one bounded pass, and no more of one prompt than a piece."""
    with make_engine(stop_ids=[], decode_chunk=2) as engine:
        monkeypatch.setattr(engine._pump._shapes, "prefill_tokens", 32)
        events: list[tuple[str, int, int]] = []
        prefill, decode = engine._device.prefill, engine._device.decode

        async def counted_prefill(batch: Any, capacity: int) -> None:
            events.append(("prefill", batch.tokens.size, int(batch.count.max())))
            await prefill(batch, capacity)

        async def counted_decode(batch: Any, capacity: int) -> Any:
            events.append(("decode", 0, 0))
            return await decode(batch, capacity)

        monkeypatch.setattr(engine._device, "prefill", counted_prefill)
        monkeypatch.setattr(engine._device, "decode", counted_decode)

        async def scenario() -> None:
            talking = asyncio.create_task(engine.generate(engine.open(0), [7], Sampling(max_new_tokens=60)))
            while engine.stats["decode_tokens"] < 4:
                await asyncio.sleep(0.005)
            prompts = np.random.default_rng(0).integers(6, 96, (6, 80)).tolist()
            await asyncio.gather(talking, *(engine.generate(engine.open(1), prompt, Sampling(max_new_tokens=1)) for prompt in prompts))

        asyncio.run(scenario())
    read = between = 0
    for kind, places, longest in events:
        between = 0 if kind == "decode" else between + places
        read = max(read, between)
        assert longest <= 16  # prefill_chunk
    assert 0 < read <= 32 + 32  # the bound, passed by less than one batch
    assert sum(kind == "decode" for kind, _, _ in events[: [kind for kind, _, _ in events].index("prefill") + 40]) >= 15


def test_a_slot_that_alone_holds_a_beginning_is_taken_over_and_the_oldest_content_goes_first() -> None:
    seats = Seats(3, 32, 1)

    def stay(tokens: list[int]) -> int:
        session = Session(key=np.zeros(2, np.uint32))
        seats.seat(session, [*tokens, 0], lambda other: True)
        slot = session.slot
        slot.expect([*tokens, 0])
        slot.held = slot.known
        seats.vacate(session)
        return slot.index

    assert [stay([1, 1, 1]), stay([2, 2, 2]), stay([3, 3, 3])] == [0, 1, 2]
    assert stay([1, 1, 5]) == 0  # begins as slot 0 does, and no other
    assert stay([4, 4]) == 1  # the oldest content
    assert stay([3, 3, 3, 6]) == 2
    assert stay([3, 3, 3, 6, 7]) == 2
    newcomer = Session(key=np.zeros(2, np.uint32))
    seats.seat(newcomer, [1, 1, 5, 8, 9], lambda other: False)
    assert newcomer.slot.index == 0 and newcomer.cached == 3
