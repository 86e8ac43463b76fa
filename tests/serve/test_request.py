"""What a client may ask, and the sentence for what it may not."""

from __future__ import annotations

import json

import pytest

from epo_jax.serve.request import APIError, ChatRequest, parse

MESSAGES = [{"role": "user", "content": "go"}]


def read(**fields) -> ChatRequest:
    return parse(json.dumps({"messages": MESSAGES, **fields}).encode(), model="mini", max_messages=8)


def refusal(body: bytes) -> APIError:
    with pytest.raises(APIError) as raised:
        parse(body, model="mini", max_messages=8)
    return raised.value


def test_a_full_request() -> None:
    asked = read(
        model="mini", temperature=0, top_p=0.5, top_k=3, max_completion_tokens=7, stop=["a", "b"], seed=-1, n=2, stream=True,
        stream_options={"include_usage": True}, logprobs=True, top_logprobs=0, response_format={"type": "text"}, user="me",
    )  # fmt: skip
    assert asked == ChatRequest(MESSAGES, 0.0, 0.5, 3, 7, ("a", "b"), -1, 2, True, True, True)
    assert read() == ChatRequest(MESSAGES)


def test_null_and_what_asks_for_nothing_are_as_if_absent() -> None:
    nothing = dict(frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tools=[], tool_choice="none", store=False, metadata={})
    assert read(**nothing, stop=None, seed=None, n=None, response_format=None, reasoning_effort=None) == read()
    assert read(stop="x").stop == ("x",)


def test_messages_of_every_allowed_form() -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "lone \ud800 surrogate"},
    ]
    roles = [(message["role"], message["content"]) for message in read(messages=messages).messages]
    assert roles == [("system", "Be short."), ("user", "ab"), ("assistant", ""), ("user", "lone \ud800 surrogate")]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "missing or empty"),
        ({"messages": "go"}, "messages", "a string"),
        ({"messages": ["go"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "give one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content", "not text"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0]", "'name'"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "messages", "last message"),
        ({"messages": [{"role": "assistant", "content": "x"}, *MESSAGES]}, "messages", "begin with the user's"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "last message"),
        ({"messages": MESSAGES * 9}, "messages", "9 messages"),
        ({"temperature": "hot"}, "temperature", "a string"),
        ({"temperature": True}, "temperature", "true or false"),
        ({"temperature": 2.5}, "temperature", "between 0 and 2"),
        ({"temperature": 10**400}, "temperature", "between 0 and 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_p": 1.1}, "top_p", "between 0 and 1"),
        ({"top_k": -1}, "top_k", "between"),
        ({"max_tokens": 0}, "max_tokens", "between 1"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "one of them"),
        ({"stop": 5}, "stop", "a string or a list"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": [""]}, "stop", "1 to 200"),
        ({"seed": 2**63}, "seed", "between"),
        ({"n": 9}, "n", "between 1 and 8"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options", "'other'"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs", "not available"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not constrain"),
        ({"frequency_penalty": 0.5}, "'frequency_penalty'", "not supported"),
        ({"frequency_penalty": False}, "'frequency_penalty'", "not supported"),
        ({"tools": [{"type": "function"}]}, "'tools'", "not supported"),
        ({"beam\nwidth" * 20: 4}, None, "not supported"),
    ],
)  # fmt: skip
def test_refusals_name_the_parameter_in_one_sentence(fields: dict, param: str | None, words: str) -> None:
    error = refusal(json.dumps({"messages": MESSAGES, **fields}).encode())
    assert error.status == 400 and words in error.message
    assert param is None or error.param == param
    assert len(error.message) < 300 and "\n" not in error.message
    assert error.body()["error"] == {"message": error.message, "type": "invalid_request_error", "param": error.param, "code": error.code}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe{}", b'{"seed": NaN}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_bodies_that_are_no_request(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.code) == (400, "invalid_json") and "send one JSON object" in error.message and "\n" not in error.message


def test_another_model() -> None:
    error = refusal(json.dumps({"messages": MESSAGES, "model": "gpt-4o"}).encode())
    assert (error.status, error.code) == (404, "model_not_found") and "'mini'" in error.message
