"""A plain openai client against a server that we did not write; what it says is what ours says."""

from __future__ import annotations

import openai
import pytest

from epo_jax.serve.server import Server
from tests.foreign_server import ForeignServer
from tests.serve.dialogues import DIALOGUE, task


@pytest.mark.slow
def test_transformers_own_server_says_what_ours_says(foreign_server: ForeignServer, server: Server) -> None:
    with (
        openai.OpenAI(base_url=foreign_server.base_url, api_key="none", max_retries=0, timeout=300) as theirs,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as ours,
    ):
        for messages in (task(1), DIALOGUE):
            asked = dict(messages=messages, temperature=0, max_tokens=24)
            whole = theirs.chat.completions.create(model=foreign_server.model, **asked)
            mine = ours.chat.completions.create(model=server.model_name, **asked)
            assert whole.choices[0].message.content == mine.choices[0].message.content != ""
            assert whole.usage.prompt_tokens == mine.usage.prompt_tokens
            stream = theirs.chat.completions.create(model=foreign_server.model, stream=True, **asked)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole.choices[0].message.content
