"""The key comes from the environment and goes to the server, and nowhere else, whatever the server says."""

from __future__ import annotations

import logging
import traceback

import pytest

from epo_jax.api.budget import Budget
from epo_jax.api.cache import ReplyCache
from epo_jax.api.client import ApiClient
from epo_jax.api.failures import ApiFatal
from epo_jax.api.settings import ApiSettings
from tests.api import scripted_server as give
from tests.api.conftest import KEY, outcomes


def everything_in(error: BaseException) -> str:
    """An exception as the most talkative handler would show it: with its causes, contexts, and the local variables of every frame."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(told.format()) + repr(error) + str(vars(error)) + repr([error.__cause__, error.__context__])


def test_no_file_log_exception_or_repr_holds_the_key(server, make_client, tmp_path, caplog, capfd):
    echoes = [give.good(f"your key is {KEY}"), give.refusal(f"not for {KEY}"), give.good("x", finish_reason=KEY)]
    echoes += [give.status(code, f"Incorrect API key: {KEY}", error={"code": KEY}) for code in (400, 401, 403, 429, 500)]
    echoes += [give.half_body(), give.reset(), give.hang()]
    with caplog.at_level(logging.DEBUG):
        for i, echo in enumerate(echoes):
            client = make_client(cache=ReplyCache(tmp_path / "r.sqlite"), budget=Budget(path=tmp_path / f"{i}.sqlite"), retries=0)
            server.then(echo)
            (result,) = outcomes(client, str(i))
            assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
            told = everything_in(result) if isinstance(result, Exception) else repr(result)
            told += repr(client) + repr(client.settings) + repr(client.totals) + str(client.totals.as_dict()) + repr(client._in_loop)
            assert KEY not in told, echo.kind
    assert len(caplog.records) > 20 and KEY not in caplog.text, "libraries spoke, but not of the key"
    assert KEY not in "".join(capfd.readouterr())
    files = list(tmp_path.iterdir())
    assert len(files) > len(echoes) and not any(KEY.encode() in file.read_bytes() for file in files)


def test_a_key_is_needed_for_a_server_elsewhere(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ApiFatal, match=r"^the model m at api.example.org needs a key: set the environment variable SOME_KEY\.$"):
        ApiClient(ApiSettings(model="m", base_url="https://api.example.org/v1", api_key_variable="SOME_KEY"), cache=None, budget=Budget())
    monkeypatch.setenv("SOME_KEY", "sk-abc\u00e9def\nx")
    with pytest.raises(ApiFatal) as told:
        ApiClient(ApiSettings(model="m", base_url="https://api.example.org/v1", api_key_variable="SOME_KEY"), cache=None, budget=Budget())
    assert "sk-abc" not in str(told.value)


def test_another_variables_key_is_not_sent(server, make_client, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    outcomes(make_client(api_key_variable="NO_SUCH_KEY"), "a")
    assert KEY not in str(server.requests[-1].headers)


def test_a_redirect_does_not_carry_the_key_away(server, make_client):
    with give.ScriptedServer() as elsewhere:
        server.then(give.status(307, location=elsewhere.url + "/chat/completions"))
        assert type(outcomes(make_client(), "a")[0]) is ApiFatal
        assert elsewhere.requests == []
