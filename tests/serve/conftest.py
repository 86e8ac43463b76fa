"""The mini strategist and one server of it, shared by the tests of serving."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from epo_jax import strategist as strategists
from epo_jax.serve.server import Options, Server, in_background
from epo_jax.strategist import Strategist

SLOTS = 8


@pytest.fixture(scope="session")
def strategist() -> Strategist:
    return strategists.from_checkpoint("mini")


@pytest.fixture(scope="session")
def server(strategist: Strategist) -> Iterator[Server]:
    with in_background(strategist, Options(slots=SLOTS, max_context=256, max_body_bytes=20_000)) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made
