"""Settings from a configuration: all defaults do, and every value that cannot be is told in one sentence."""

from __future__ import annotations

import dataclasses

import pytest

from epo_jax.api.settings import OPENAI, ApiSettings, get_api_defaults
from epo_jax.errors import UserError


def test_defaults_of_the_configuration_and_of_the_class_agree():
    assert ApiSettings.from_config(get_api_defaults("m")) == ApiSettings(model="m")


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", " "), ("max_tokens", 0), ("retries", -1), ("concurrency", 0), ("timeout_s", 0.0),
        ("timeout_s", float("nan")), ("deadline_s", float("inf")),
        ("requests_per_minute", -1), ("price_per_million_prompt", float("nan")), ("breaker_max_pauses", 0), ("structured", "yaml"),
        ("budget_money", 5.0),
        ("max_tokens", "many"), ("temperature", float("nan")), ("top_p", 0.0),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be(field, value):
    with pytest.raises(UserError, match=rf"judge.*{field}|a value of judge"):
        ApiSettings.from_config(get_api_defaults("m").to_dict() | {field: value}, "judge")


def test_an_unknown_field():
    with pytest.raises(UserError, match="unknown field 'api_key'"):
        ApiSettings.from_config({"model": "m", "api_key": "sk"})


def test_where_the_server_is(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    settings = ApiSettings(model="m")
    assert settings.server() == OPENAI
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert settings.server() == "http://localhost:8000/v1"
    assert dataclasses.replace(settings, base_url="http://[::1]:1/v1").server() == "http://[::1]:1/v1"


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "https://me:sk-secret1@host/v1", "https://host/v1?key=sk-secret1"],
)
def test_what_is_no_address(address):
    with pytest.raises(UserError) as told:
        ApiSettings(model="m", base_url=address).server()
    assert "sk-secret1" not in str(told.value)
