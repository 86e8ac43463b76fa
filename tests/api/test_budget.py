"""A budget is never passed, waits where waiting helps, and outlives the process."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from epo_jax.api.budget import Budget, spent_in
from epo_jax.api.client import ApiError, BudgetSpent
from epo_jax.api.settings import ApiSettings
from epo_jax.errors import UserError
from tests.api import scripted_server as give
from tests.api.conftest import outcomes
from tests.api.scripted_time import settle


def test_it_stops_before_it_is_passed(server, make_client):
    server.otherwise = lambda body: give.good(prompt_tokens=100, completion_tokens=50)
    client = make_client(budget=Budget(tokens=2000), concurrency=8)
    results = outcomes(client, *map(str, range(40)))
    answered = [result for result in results if not isinstance(result, Exception)]
    assert {type(result) for result in results if isinstance(result, Exception)} == {BudgetSpent}
    assert client.budget.spent_tokens == 150 * len(answered) <= 2000 and len(server.requests) == len(answered)
    # a call may need one token a byte, 144 for the template, and 50 for the answer: no sooner than that does it stop
    assert client.budget.spent_tokens > 2000 - 150 - (2 + 144 + 50)
    assert "budget_tokens=2000" in str(results[-1])


def test_processes_get_equal_parts_of_what_all_starts_have_left(tmp_path):
    """A limit of 100: 10 and 20 were spent, 5 held back by a process that was killed; of the 65 that are left each of two gets 32."""
    spent = {"one": 10, "two": 20}
    for name, tokens in spent.items():
        budget = Budget(tokens=100, path=tmp_path / name)
        asyncio.run(budget.reserve(tokens, tokens / 10)).settle(tokens, tokens / 10)
        if name == "two":
            asyncio.run(budget.reserve(5, 0.5))
        budget.close()
    assert [spent_in(tmp_path / name) for name in spent] == [(10, 1.0), (25, 2.5)]
    again = Budget(tokens=100, money=5.0, path=tmp_path / "one")
    again.share(2, 25, 2.5)
    assert (again.limit_tokens, again.limit_money) == (10 + 32, pytest.approx(1.0 + 0.75))
    asyncio.run(again.reserve(32, 0.0)).settle(32, 0.0)
    with pytest.raises(BudgetSpent):
        asyncio.run(again.reserve(1, 0.0))
    again.close()
    over = Budget(tokens=30, path=tmp_path / "one")
    over.share(2, 25, 0.0)
    with pytest.raises(BudgetSpent):
        asyncio.run(over.reserve(1, 0.0))
    over.close()


def test_money(server, make_client):
    server.otherwise = lambda body: give.good(prompt_tokens=100, completion_tokens=50)
    prices = dict(price_per_million_prompt=2.5, price_per_million_completion=10.0)
    client = make_client(budget=Budget(money=0.01), concurrency=1, **prices)
    results = outcomes(client, *map(str, range(40)))
    answered = sum(not isinstance(result, Exception) for result in results)
    assert client.budget.spent_money == pytest.approx(answered * (100 * 2.5 + 50 * 10.0) / 1e6) and client.budget.spent_money <= 0.01
    assert client.totals.money == pytest.approx(client.budget.spent_money)
    assert answered == 13  # they cost 0.00975, and one more may cost 148 * 2.5e-6 + 50 * 1e-5


def test_clients_share_it(server, make_client):
    budget = Budget(tokens=1000)
    actor, judge = make_client(budget=budget), make_client(budget=budget)
    outcomes(actor, *map(str, range(10)))
    outcomes(judge, *map(str, range(10)))
    assert budget.spent_tokens == 15 * 20 == 15 * (actor.totals.answered + judge.totals.answered)


def test_what_breaks_off_counts_in_full_and_what_was_not_served_counts_nothing(server, make_client):
    client = make_client(retries=0)
    broken, turned_away = (give.half_body(), give.hang(), give.invalid_json()), (give.status(500), give.too_many())
    for answer in (*broken, *turned_away):
        server.then(answer)
        before = client.budget.spent_tokens
        assert type(outcomes(client, "x")[0]) is ApiError
        assert (client.budget.spent_tokens > before) == (answer in broken), answer.kind


def test_without_a_count_of_tokens_the_most_is_taken(server, make_client):
    server.then(give.good(usage=False))
    client = make_client()
    outcomes(client, "0123456789")
    assert client.budget.spent_tokens == 10 + 128 + 16 + 2 + 50


def test_it_outlives_the_process(tmp_path):
    async def spend() -> None:
        budget = Budget(tokens=1000, path=tmp_path / "spent.sqlite")
        (await budget.reserve(400, 0.5)).settle(300, 0.25)
        await budget.reserve(200, 0.125)  # the process ends while this is under way
        budget.close()

    asyncio.run(spend())
    again = Budget(tokens=1000, path=tmp_path / "spent.sqlite")
    assert (again.spent_tokens, again.spent_money) == (500, 0.375)
    with pytest.raises(BudgetSpent):
        asyncio.run(again.reserve(501, 0.0))
    asyncio.run(again.reserve(500, 0.0)).settle(0, 0.0)
    again.close()
    assert Budget(path=tmp_path / "spent.sqlite").spent_tokens == 500


def test_waiting_for_others_to_settle():
    async def scene() -> None:
        budget = Budget(tokens=100)
        first = await budget.reserve(80, 0.0)
        second = asyncio.create_task(budget.reserve(80, 0.0))
        await settle()
        assert not second.done(), "what the first does not use may suffice"
        first.settle(10, 0.0)
        reservation = await second
        third = asyncio.create_task(budget.reserve(30, 0.0))
        await settle()
        reservation.settle(75, 0.0)
        with pytest.raises(BudgetSpent, match="raise budget_tokens"):
            await third
        assert budget.spent_tokens == 85

    asyncio.run(scene())


def test_one_budget_a_run():
    settings = ApiSettings(model="m")
    budget = Budget.shared([dataclasses.replace(settings, budget_tokens=5), settings])
    assert (budget.limit_tokens, budget.limit_money) == (5, 0)
    with pytest.raises(UserError, match="a run has one budget"):
        Budget.shared([dataclasses.replace(settings, budget_tokens=5), dataclasses.replace(settings, budget_tokens=6)])


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "spent.sqlite").write_bytes(b"spent: nothing, honestly. " * 100)
    with pytest.raises(UserError, match="the record of what was spent .* is damaged"):
        Budget(path=tmp_path / "spent.sqlite")
