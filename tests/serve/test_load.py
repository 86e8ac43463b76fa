"""The server when more is asked than it can do, clients leave, it is stopped, or its engine fails."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest

from epo_jax.serve.replies import Limits
from epo_jax.serve.server import Options, Server, in_background, serving
from epo_jax.strategist import Strategist
from tests.serve.dialogues import ask


class Gate:
    """Holds the device before each decode chunk until it is let through."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._passes = threading.Semaphore(0)
        decode = server.engine._device.programs.decode

        def held(*args, **options):
            assert self._passes.acquire(timeout=60)
            return decode(*args, **options)

        monkeypatch.setattr(server.engine._device.programs, "decode", held)

    def let(self, chunks: int) -> None:
        self._passes.release(chunks)


ONE_SLOT = Options(slots=1, max_context=128, decode_chunk=2, limits=Limits(max_queue=1), grace=60)


def run_gated(strategist: Strategist, monkeypatch: pytest.MonkeyPatch, scenario, options: Options = ONE_SLOT) -> None:
    """scenario(server, client, gate) against a server in its own event loop."""

    async def everything() -> None:
        async with serving(strategist, options) as server:
            gate = Gate(server, monkeypatch)
            try:
                async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
                    await scenario(server, client, gate)
            finally:
                gate.let(1000)

    asyncio.run(everything())


async def until(condition) -> None:
    """Gives way to the event loop until something it works on has come about."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_overload_is_told_and_those_who_wait_are_served(strategist: Strategist, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, client: openai.AsyncOpenAI, gate: Gate) -> None:
        first = asyncio.create_task(client.chat.completions.create(**ask(server)))
        await until(lambda: server.engine.busy_slots == 1)
        second = asyncio.create_task(client.chat.completions.create(**ask(server)))
        await until(lambda: server.replies.queue_length == 1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="1 slots are taken and 1 replies wait") as raised:
                await client.chat.completions.create(**ask(server, stream=stream))
            assert 1 <= int(raised.value.response.headers["Retry-After"]) <= 60 and raised.value.code == "queue_full"
        with pytest.raises(openai.BadRequestError, match="at most 2 replies at once"):
            await client.chat.completions.create(**ask(server, n=3))
        gate.let(1000)
        assert (await first).choices == (await second).choices
        await client.chat.completions.create(**ask(server))  # there is room again

    run_gated(strategist, monkeypatch, scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(strategist: Strategist, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    async def scenario(server: Server, client: openai.AsyncOpenAI, gate: Gate) -> None:
        if stream:
            gate.let(1)
            chunks = await client.chat.completions.create(**ask(server), stream=True)
            async for chunk in chunks:
                if chunk.choices[0].delta.content:
                    break
            assert server.engine.busy_slots == 1  # it has sampled two tokens and wants more
            await chunks.close()
        else:
            call = asyncio.create_task(client.chat.completions.create(**ask(server)))
            await until(lambda: server.engine.busy_slots == 1)
            call.cancel()
        await until(lambda: server.engine.busy_slots == 0)  # while the device is still held
        assert server.engine.stats["decode_tokens"] == (2 if stream else 0)
        gate.let(1000)
        await server.replies.finished(60)
        assert (await client.chat.completions.create(**ask(server))).choices[0].message.content

    run_gated(strategist, monkeypatch, scenario)


def test_stopping_finishes_what_runs_and_takes_nothing_new(strategist: Strategist, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, client: openai.AsyncOpenAI, gate: Gate) -> None:
        await client.models.list()  # leaves a connection open
        running = asyncio.create_task(client.chat.completions.create(**ask(server)))
        await until(lambda: server.engine.busy_slots == 1)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            await client.models.list()
        with pytest.raises(openai.APIConnectionError):
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as late:
                await late.models.list()
        assert not running.done()
        gate.let(1000)
        assert (await running).choices[0].message.content
        await stopping

    run_gated(strategist, monkeypatch, scenario)


def test_a_request_that_takes_too_long(strategist: Strategist, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, client: openai.AsyncOpenAI, gate: Gate) -> None:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="longer than 0.05 seconds") as raised:
                await client.chat.completions.create(**ask(server, stream=stream))
            assert raised.value.status_code == 504 and server.engine.busy_slots == 0  # the device is still held

    run_gated(strategist, monkeypatch, scenario, Options(slots=1, max_context=128, decode_chunk=2, limits=Limits(deadline=0.05)))


def test_a_failing_engine_is_an_error_of_the_server(strategist: Strategist, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args, **_options):
        raise OSError("the device is gone")

    with in_background(strategist, ONE_SLOT) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with monkeypatch.context() as patch:
            patch.setattr(server.engine._device.programs, "decode", broken)
            for stream in (False, True):
                with pytest.raises(openai.InternalServerError, match="could not be sampled"):
                    client.chat.completions.create(**ask(server, stream=stream))
        assert client.chat.completions.create(**ask(server)).choices[0].message.content
