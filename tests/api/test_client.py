"""Every kind of fault over real sockets, alone and many at once: what is tried again, what fails for good, and how it is told."""

from __future__ import annotations

import asyncio
import email.utils
import random

import pytest

from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiError, ApiFatal
from epo_jax.api.clock import Clock
from tests.api import scripted_server as give
from tests.api.conftest import outcomes, question

REPEATED = {  # the kind it is counted as: an answer of that kind
    "rate_limited": give.too_many(),
    "server_error": give.status(500),
    "conflict": give.status(409),
    "timeout": give.hang(),
    "connection": give.reset(),
    "half_body": give.half_body(),
    "too_long": give.too_long(),
    "invalid_json": give.invalid_json(),
    "wrong_shape": give.wrong_shape(),
    "no_choice": give.no_choice(),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_a_passing_fault_is_tried_again(kind, server, make_client):
    server.then(REPEATED[kind], give.good("on the shelf"))
    client = make_client()
    (reply,) = outcomes(client, "where?")
    assert reply.text == "on the shelf" and not reply.cached
    assert len(server.requests) == 2 and client.totals.faults == {kind: 1} and client.totals.retries == 1


@pytest.mark.parametrize("kind", REPEATED)
def test_a_lasting_fault_fails_the_call_after_its_tries(kind, server, make_client):
    server.otherwise = lambda body: REPEATED[kind]
    client = make_client(retries=2)
    (error,) = outcomes(client, "where?")
    assert type(error) is ApiError and "3 tries" in str(error) and "\n" not in str(error)
    assert len(server.requests) == 3 and client.totals.faults == {kind: 3} and client.totals.failed == 1


@pytest.mark.parametrize("code", [408, 429, 502, 503, 529])
def test_other_passing_states(code, server, make_client):
    server.then(give.status(code))
    (reply,) = outcomes(make_client(), "where?")
    assert reply.text == "ok"


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_request_fails_its_call_at_once(code, server, make_client):
    server.then(give.good(), give.status(code, "the prompt\nis\x1b[31m too long" + "!" * 10**6))
    client = make_client()
    outcomes(client, "a short one")
    (error,) = outcomes(client, "a long one")
    assert type(error) is ApiError and "the prompt is [31m too long!" in str(error) and len(server.requests) == 2
    assert str(error).isprintable() and len(str(error)) < 400


@pytest.mark.parametrize(
    "answer",
    [
        *map(give.status, (401, 402, 403, 404)),
        give.status(307, location="http://127.0.0.1:9/"),
        give.status(429, error={"code": "insufficient_quota"}),
    ],
    ids=lambda answer: str(answer.status),
)
def test_what_would_fail_for_every_call_stops_the_run(answer, server, make_client):
    server.otherwise = lambda body: answer
    (error,) = outcomes(make_client(), "where?")
    assert type(error) is ApiFatal and len(server.requests) == 1


def test_a_server_that_refuses_every_request_stops_the_run(server, make_client):
    server.otherwise = lambda body: give.status(400, "unknown parameter")
    client = make_client(breaker_failures=3)
    assert [type(outcomes(client, str(i))[0]) for i in range(3)] == [ApiError, ApiError, ApiFatal]


def test_texts_that_cannot_be_written_are_mended(server, make_client, tmp_path):
    parts = give.Canned("parts", body=b'{"choices": [{"message": {"content": [{"type": "text", "text": "in parts"}]}}]}')
    server.then(give.good("a lone \ud800 surrogate"), parts)
    client = make_client(cache=ReplyCache(tmp_path / "r.sqlite"))
    (first,), (second,) = outcomes(client, "asked with \udfff"), outcomes(client, "b")
    assert (first.text, second.text, second.finish_reason) == ("a lone ? surrogate", "in parts", "")
    assert server.requests[0].body["messages"][0]["content"] == "asked with ?"


def test_an_error_within_a_good_status_is_told(server, make_client):
    server.otherwise = lambda body: give.Canned("error", body=b'{"error": {"message": "upstream is away"}}')
    assert "upstream is away" in str(outcomes(make_client(retries=0), "a")[0])


def test_no_server_at_all(make_client):
    client = make_client(base_url="http://127.0.0.1:9/v1", retries=1)
    (error,) = outcomes(client, "where?")
    assert type(error) is ApiError and "connection failed" in str(error) and client.budget.spent_tokens == 0


def test_a_refusal_and_a_cut_off_answer_are_replies(server, make_client):
    server.then(give.refusal("No."), give.good("half a sen", finish_reason="length"))
    client = make_client()
    (first,), (second,) = outcomes(client, "a"), outcomes(client, "b")
    assert (first.text, first.refusal) == ("", "No.") and (second.text, second.finish_reason) == ("half a sen", "length")
    assert client.totals.faults == {}


@pytest.mark.parametrize("header, least", [({"Retry_After": "7"}, 7.0), ({"retry_after_ms": "2500", "Retry_After": "9"}, 2.5), ({}, 0.0)])
def test_the_wait_that_a_server_asks_for(header, least, server, time, make_client):
    server.then(give.status(429, **header))
    outcomes(make_client(), "where?")
    assert least <= sum(time.slept) <= least + 1.0  # and the jitter of a first retry


def test_the_wait_as_a_date(server, time, make_client):
    server.then(give.status(503, Retry_After=email.utils.formatdate(1_700_000_000 + 20, usegmt=True)))
    outcomes(make_client(), "where?")
    assert 20.0 <= sum(time.slept) <= 21.0


@pytest.mark.parametrize("value", ["-5", "nan", "soon", "inf", "", "99999999999999999999"])
def test_a_senseless_wait_neither_hangs_nor_breaks(value, server, time, make_client):
    server.then(give.status(429, Retry_After=value))
    outcomes(make_client(), "where?")
    assert sum(time.slept) <= 1.0


def test_a_wait_beyond_the_deadline_fails_the_call(server, time, make_client):
    server.then(give.too_many(retry_after="3600"))
    (error,) = outcomes(make_client(deadline_s=60.0), "where?")
    assert type(error) is ApiError and "asks to wait 3600 s" in str(error) and time.slept == []


def test_backoff_grows_with_full_jitter(server, time, make_client):
    server.otherwise = lambda body: give.status(500)
    outcomes(make_client(retries=8, deadline_s=1e6), "where?")
    assert time.slept == [0.5, 1, 2, 4, 8, 16, 30, 30]  # chance is 0.5 throughout


def test_the_deadline_of_a_call_bounds_its_tries(server, time, make_client):
    server.otherwise = lambda body: give.status(500)
    (error,) = outcomes(make_client(retries=100, deadline_s=10.0), "where?")
    assert type(error) is ApiError and "within 10 s" in str(error) and sum(time.slept) < 10.0


def test_a_hang_does_not_hold_up_others(server, make_client):
    server.otherwise = lambda body: give.hang() if body["messages"][0]["content"] == "slow" else give.good()
    client = make_client(concurrency=2)
    server.on_hang = lambda body: None  # and its time does not run out

    async def others_while_one_hangs() -> int:
        slow = asyncio.create_task(client.complete(question("slow")))
        replies = await asyncio.gather(*(client.complete(question(str(i))) for i in range(20)))
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return len(replies)

    assert asyncio.run(others_while_one_hangs()) == 20


def test_a_try_ends_when_its_time_is_over(server, make_client):
    server.then(give.hang())
    client = make_client(timeout_s=0.2, retries=0, clock=Clock())
    server.on_hang = lambda body: None
    (error,) = outcomes(client, "where?")
    assert type(error) is ApiError and "no answer within 0.2 s" in str(error)


def test_concurrency_is_bounded(server, make_client):
    replies = outcomes(make_client(concurrency=3), *map(str, range(30)))
    assert len(replies) == 30 and server.most_at_once <= 3


def test_many_calls_with_faults_all_end_and_the_counts_agree(server, make_client, tmp_path):
    """64 calls, 30 % of the answers faulty: what the client counts is what the server injected, and a second time costs nothing."""
    chooser, faults = random.Random(5), [*REPEATED.values(), give.status(400), give.refusal()]
    script = [chooser.choice(faults) if chooser.random() < 0.3 else give.good() for _ in range(400)]
    server.then(*script)
    budget = Budget(path=tmp_path / "spent.sqlite")
    client = make_client(cache=ReplyCache(tmp_path / "replies.sqlite"), budget=budget, retries=2, concurrency=16)
    texts = [str(i) for i in range(64)]
    results = outcomes(client, *texts)
    answered = [result for result in results if not isinstance(result, Exception)]
    failed = [result for result in results if isinstance(result, Exception)]
    assert {type(error) for error in failed} <= {ApiError} and len(answered) + len(failed) == 64
    totals, served = client.totals, server.served
    names = {"rate_limited": "429", "server_error": "500", "conflict": "409", "timeout": "hang", "connection": "reset", "refused": "400"}
    kinds = [*REPEATED, "refused"]
    assert {kind: totals.faults[kind] for kind in kinds} == {kind: served[names.get(kind, kind)] for kind in kinds}
    assert totals.answered == len(answered) == served["good"] + served["refusal"] and totals.failed == len(failed)
    assert totals.tries == len(server.requests) == sum(served.values())
    assert (totals.prompt_tokens, totals.completion_tokens) == (10 * totals.answered, 5 * totals.answered)
    assert len(client.cache) == len(answered) and sum(served[name] for name in served if name != "good") > 20

    asked, spent = len(server.requests), budget.spent_tokens
    server._script.clear()
    again = outcomes(client, *texts)
    assert len(server.requests) == asked + len(failed), "only what had failed is asked again"
    assert budget.spent_tokens == spent + 15 * len(failed)
    assert [reply.cached for reply, first in zip(again, results, strict=True) if not isinstance(first, Exception)] == [True] * len(answered)
