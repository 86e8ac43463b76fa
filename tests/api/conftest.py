"""A scripted server, and clients of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epo_jax.api.budget import Budget
from epo_jax.api.client import ApiClient
from epo_jax.api.settings import ApiSettings
from tests.api.scripted_server import ScriptedServer
from tests.api.scripted_time import JumpingTime

KEY = "sk-test-4f9a1c7e2b8d"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def time() -> JumpingTime:
    return JumpingTime()


@pytest.fixture
def make_client(server: ScriptedServer, time: JumpingTime, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ApiClient]:
    """A client of the scripted server on scripted time, where a hang is the end of a try.

    Keywords are fields of `ApiSettings`, or `cache`, `budget`, `clock`.
    """
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.on_hang = lambda body: time.time_out(body["messages"][-1]["content"])

    def make(*, cache: Any = None, budget: Budget | None = None, clock: Any = None, **fields: Any) -> ApiClient:
        settings = ApiSettings(model="m", base_url=server.url, breaker_failures=1000, max_tokens=50)
        settings = dataclasses.replace(settings, **fields)
        return ApiClient(settings, cache=cache, budget=budget or Budget(), clock=clock or time.clock)

    return make


def question(text: str = "where is the mug?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def outcomes(client: ApiClient, *texts: str, **options: Any) -> list[Any]:
    """The replies to several questions asked at once, or the exceptions that stand for them, in one event loop of their own.

    Each is a task named by its question, so that `JumpingTime` knows whose time is over when the server hangs.
    """

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.create_task(client.complete(question(text), **options), name=text) for text in texts]
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(all_of_them())
