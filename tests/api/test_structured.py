"""JSON out of what models write, asked again where it does not do; and servers that cannot enforce a schema."""

from __future__ import annotations

import asyncio
import json
import time as real_time

import pytest

from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiError
from epo_jax.api.failures import NoUsableAnswer
from epo_jax.api.structured import ask, parse
from tests.api import scripted_server as give
from tests.api.conftest import outcomes, question

SCHEMA = {
    "type": "object",
    "properties": {"indexes": {"type": "array", "items": {"type": "integer"}}, "reasoning": {"type": "string"}},
    "required": ["indexes", "reasoning"],
    "additionalProperties": False,
}
VALUE = {"indexes": [1, 3], "reasoning": "found the mug"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VALUE),
        "\n " + json.dumps(VALUE, indent=2) + "\n",
        "```json\n" + json.dumps(VALUE) + "\n```",
        "Sure! Here it is:\n```\n" + json.dumps(VALUE) + "\n```\nAnything else?",
        "I think {that} the answer is " + json.dumps(VALUE) + ".",
        "The answer is " + json.dumps(VALUE) + " as asked.",
        "{'indexes': [1, 3], 'reasoning': 'found the mug',}",
        '{"indexes": [1, 3,], "reasoning": "found the mug"',
        '{indexes: [1, 3], reasoning: "found the mug"}',
    ],
)
def test_what_models_write_is_read(text):
    assert parse(text, SCHEMA) == VALUE


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "no JSON object"),
        ("I would rather not.", "no JSON object"),
        ("[1, 3]", "no JSON object"),
        ('{"indexes": ["one"], "reasoning": ""}', "at ['indexes'][0]"),
        ('{"indexes": [1]}', "'reasoning' is a required property"),
        ('{"indexes": [1], "reasoning": "", "extra": 1}', "extra"),
        ("[" * 100_000, "no JSON object"),
        ('{"a":' * 100_000, "no JSON object"),
        ('["' * 100_000 + '{"', "required property"),
    ],
)
def test_what_cannot_be_used_is_told(text, complaint):
    start = real_time.process_time()
    with pytest.raises(ValueError) as told:
        parse(text, SCHEMA)
    assert complaint in str(told.value) and len(str(told.value)) < 500
    assert real_time.process_time() - start < 5.0


def picks_below(number):
    def check(value):
        if any(index >= number for index in value["indexes"]):
            raise ValueError(f"there are only {number} turns")
        return value["indexes"]

    return check


def asking(client, **options):
    return asyncio.run(ask(client, question(), SCHEMA, picks_below(3), **options))


def test_asked_again_with_the_answer_and_the_reason(server, make_client, tmp_path):
    wrong = json.dumps({"indexes": [7], "reasoning": ""})
    server.then(give.good("no idea"), give.good(wrong), give.good(json.dumps({"indexes": [2], "reasoning": ""})))
    client = make_client(cache=ReplyCache(tmp_path / "r.sqlite"))
    assert asking(client) == [2] and client.totals.asked_again == 2
    first, second, third = (request.body["messages"] for request in server.requests)
    assert second[: len(first)] == first and third[: len(second)] == second
    assert second[1] == {"role": "assistant", "content": "no idea"} and "no JSON object" in second[2]["content"]
    assert third[3]["content"] == wrong and "there are only 3 turns" in third[4]["content"]
    assert asking(client) == [2] and len(server.requests) == 3, "the whole exchange replays from the cache"


def test_attempts_are_bounded(server, make_client):
    server.otherwise = lambda body: give.good('{"indexes": [', finish_reason="length")
    with pytest.raises(ApiError, match=r"no usable answer in 2 attempts .*cut off"):
        asking(make_client(), attempts=2)
    assert len(server.requests) == 2


def test_a_refusal_is_not_argued_with(server, make_client):
    server.then(give.refusal("I will\nnot."))
    with pytest.raises(ApiError, match="refused to answer: I will not."):
        asking(make_client())
    assert len(server.requests) == 1


def form(body) -> str:
    return body.get("response_format", {"type": "text"})["type"]


def only(*forms):
    """A server that takes these forms of answer alone."""
    refused = give.status(400, "response_format is not supported", error={"param": "response_format"})
    return lambda body: give.good("{}") if form(body) in forms else refused


@pytest.mark.parametrize("forms", [("json_schema", "json_object", "text"), ("json_object", "text"), ("text",)])
def test_the_strictest_form_that_the_server_takes_is_found_once(forms, server, make_client):
    server.otherwise = only(*forms)
    client = make_client()
    outcomes(client, "a", schema=SCHEMA)
    assert len(server.requests) == 4 - len(forms)
    outcomes(client, "b", "c", schema=SCHEMA)
    bodies = [request.body for request in server.requests[-2:]]
    assert [form(body) for body in bodies] == [forms[0]] * 2 and len(server.requests) == 6 - len(forms)
    if forms[0] == "json_schema":
        assert bodies[0]["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": SCHEMA}
    else:
        assert all(json.dumps(SCHEMA) in body["messages"][-1]["content"] for body in bodies), "a model that is not bound must be told"
    assert [reply.text for reply in outcomes(client, "d")] == ["{}"] and form(server.requests[-1].body) == "text"


def test_a_request_refused_for_another_reason_lowers_nothing(server, make_client):
    client = make_client()
    server.then(*[give.status(400, "too long")] * 3, give.good("{}"), give.status(400, "too long"))
    assert type(outcomes(client, "long", schema=SCHEMA)[0]) is ApiError
    outcomes(client, "short", schema=SCHEMA)
    assert form(server.requests[-1].body) == "json_schema"
    assert type(outcomes(client, "long again", schema=SCHEMA)[0]) is ApiError and len(server.requests) == 5, "by now it is known to take schemas"


def test_a_form_that_was_asked_for_is_kept_to(server, make_client):
    server.otherwise = only("text")
    assert type(outcomes(make_client(structured="json_object"), "a", schema=SCHEMA)[0]) is ApiError
    assert [form(request.body) for request in server.requests] == ["json_object"]


def test_models_that_count_their_answer_by_another_name(server, make_client):
    def newer(body):
        told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return give.status(400, told, error={"param": "max_tokens"}) if "max_tokens" in body else give.good()

    server.otherwise = newer
    client = make_client(temperature=-1.0)
    outcomes(client, "a")
    outcomes(client, "b")
    bodies = [request.body for request in server.requests]
    assert [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in bodies] == [(50, None), (None, 50), (None, 50)]
    assert not any("temperature" in body for body in bodies)


def test_what_a_model_thinks_aloud_is_not_its_answer():
    draft, answer = json.dumps(VALUE | {"indexes": [9]}), json.dumps(VALUE)
    assert parse(f"<think>Perhaps {draft}, or not.</think>{answer}", SCHEMA) == VALUE
    assert parse(f"<think>{draft}</think>```json\n{answer}\n```", SCHEMA) == parse(f"{draft}</think>{answer[:-1]}", SCHEMA) == VALUE
    with pytest.raises(ValueError, match="no JSON object"):
        parse(f"<think>{draft}</think>I give up.", SCHEMA)
    said = VALUE | {"reasoning": "after </think> it is still a string"}
    assert parse(json.dumps(said), SCHEMA) == said


def test_who_asks_is_told_of_every_further_question(server, make_client):
    server.then(give.good("no"), give.good("no"), give.good(json.dumps(VALUE | {"indexes": [1]})), give.good("no"), give.good("no"), give.refusal())
    client, again = make_client(), []
    assert asking(client, attempts=3, on_again=lambda: again.append("again")) == [1] and len(again) == 2 == client.totals.asked_again
    for attempts, words in ((2, "no usable answer in 2 attempts"), (2, "refused to answer")):
        with pytest.raises(NoUsableAnswer, match=words):
            asking(client, attempts=attempts)


def test_an_answer_that_was_cut_off_is_not_mended(server, make_client):
    """Of [1, 2] a cut may leave [1, and of 10 a 1: the model is asked for a shorter answer; one that is whole all the same will do."""
    cut = '{"reasoning": "found the mug", "indexes": [1'
    assert parse(cut, SCHEMA)["indexes"] == [1]
    server.then(give.good(cut, finish_reason="length"), give.good(json.dumps(VALUE | {"indexes": [1, 2]}), finish_reason="length"))
    assert asking(make_client()) == [1, 2] and "cut off" in server.requests[1].body["messages"][-1]["content"]
