"""What a configuration says about one model behind an API."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import os
import urllib.parse
from typing import Any

from ml_collections import ConfigDict

from epo_jax.api.failures import ApiFatal
from epo_jax.errors import UserError

OPENAI = "https://api.openai.com/v1"
STRUCTURED = ("auto", "schema", "json_object", "text")


def get_api_defaults(model: str = "gpt-4o-2024-08-06", *, temperature: float = 0.7, max_tokens: int = 512) -> ConfigDict:
    """The section of a configuration that `ApiSettings.from_config` reads. Times are in seconds."""
    section = ConfigDict()
    section.model = model
    section.base_url = ""  # "" = OPENAI_BASE_URL from the environment, else OpenAI's own
    section.api_key_variable = "OPENAI_API_KEY"  # the environment variable that holds the key; a server on this machine needs none
    section.temperature = temperature  # below 0: not sent (reasoning models take only their own); so with top_p
    section.top_p = 1.0
    section.max_tokens = max_tokens  # the longest answer
    section.timeout_s = 120.0  # one try
    section.deadline_s = 600.0  # a whole call: its tries and the waits between them, without queueing, rate limits and pauses
    section.retries = 5  # tries after the first
    section.concurrency = 16  # requests under way at once
    section.requests_per_minute = 0  # 0: no limit
    section.tokens_per_minute = 0  # prompt and answer; 0: no limit
    section.price_per_million_prompt = 0.0  # in the currency of budget_money
    section.price_per_million_completion = 0.0
    section.breaker_failures = 10  # so many failed tries in a row pause all calls
    section.breaker_pause_s = 5.0  # the first pause; each further one in a row is twice as long
    section.breaker_max_pauses = 8  # in a row; then the run stops
    section.budget_tokens = 0  # prompt and answer, of the whole run and all its models; 0: no limit
    section.budget_money = 0.0  # 0: no limit
    section.structured = "auto"  # how an answer's JSON is enforced: schema | json_object | text | auto, the strictest that the server takes
    return section


@dataclasses.dataclass(frozen=True)
class ApiSettings:
    """One model behind one server; the fields are those of `get_api_defaults`. It never holds the key."""

    model: str
    base_url: str = ""
    api_key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    timeout_s: float = 120.0
    deadline_s: float = 600.0
    retries: int = 5
    concurrency: int = 16
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    price_per_million_prompt: float = 0.0
    price_per_million_completion: float = 0.0
    breaker_failures: int = 10
    breaker_pause_s: float = 5.0
    breaker_max_pauses: int = 8
    budget_tokens: int = 0
    budget_money: float = 0.0
    structured: str = "auto"

    @classmethod
    def from_config(cls, section: ConfigDict | dict[str, Any], name: str = "api") -> ApiSettings:
        """The settings of a section of the configuration; `name` is what a complaint calls it. Raises `UserError` for a value that cannot be."""
        values = section.to_dict() if isinstance(section, ConfigDict) else dict(section)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"{name} has the unknown field {unknown[0]!r}.")
        if not str(values.get("model", "")).strip():
            raise UserError(f"{name}.model is empty: name the model, as the server knows it.")
        try:
            settings = cls(**values)
            settings._check(name)
        except TypeError as error:  # a value of another type, which no comparison takes
            raise UserError(f"a value of {name} has the wrong type: {error}.") from error
        return settings

    def divided(self, among: int) -> ApiSettings:
        """What each of so many processes may use, so that together they keep to the run's limits: rates and requests at once (budget: `Budget.share`)."""
        least_one = ("concurrency", "requests_per_minute", "tokens_per_minute")
        parts: dict[str, Any] = {field: max(1, getattr(self, field) // among) for field in least_one if getattr(self, field)}
        return dataclasses.replace(self, **parts)

    def _check(self, name: str) -> None:
        for field, least in (("max_tokens", 1), ("retries", 0), ("concurrency", 1), ("breaker_failures", 1), ("breaker_max_pauses", 1)):
            if getattr(self, field) < least:
                raise UserError(f"{name}.{field} is {getattr(self, field)}: it must be at least {least}.")
        if not self.temperature < 100 or not (self.top_p < 0 or 0 < self.top_p <= 1):
            raise UserError(f"{name}.temperature is {self.temperature}, {name}.top_p {self.top_p}: a number, and a share above 0; below 0: not sent.")
        for field in ("timeout_s", "deadline_s", "breaker_pause_s"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"{name}.{field} is {getattr(self, field)}: it must be a number of seconds above 0.")
        rates, prices = ("requests_per_minute", "tokens_per_minute"), ("price_per_million_prompt", "price_per_million_completion")
        for field in (*rates, *prices, "budget_tokens", "budget_money"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(f"{name}.{field} is {getattr(self, field)}: it must be 0 or more.")
        if self.structured not in STRUCTURED:
            raise UserError(f"{name}.structured is {self.structured!r}: choose one of {', '.join(STRUCTURED)}.")
        if self.budget_money and not (self.price_per_million_prompt or self.price_per_million_completion):
            raise UserError(f"{name}.budget_money needs prices: set {name}.price_per_million_prompt and {name}.price_per_million_completion.")

    def server(self) -> str:
        """The address of the server, from the configuration or the environment. Raises `UserError` for one that cannot be an address."""
        address = (self.base_url or os.environ.get("OPENAI_BASE_URL", "") or OPENAI).strip()
        try:
            parts = urllib.parse.urlsplit(address)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"base_url {_without_login(address)!r} is not the address of a server: it should look like http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise UserError("base_url holds a login or a query, which would be written into the run: give the key in the environment instead.")
        return address

    def read_key(self) -> str:
        """The key from the environment; "" for a server on this machine without one. Raises `ApiFatal` where one is needed and missing."""
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key and not is_loopback(self.server()):
            raise ApiFatal(f"the model {self.model} at {host(self.server())} needs a key: set the environment variable {self.api_key_variable}.")
        if not (key.isascii() and key.isprintable()):
            raise ApiFatal(f"the key in the environment variable {self.api_key_variable} holds a character that no key has: copy it again.")
        return key


def host(address: str) -> str:
    """The server's name and port, for sentences."""
    return urllib.parse.urlsplit(address).netloc.rpartition("@")[2]


def is_loopback(address: str) -> bool:
    name = urllib.parse.urlsplit(address).hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_login(address: str) -> str:
    return address.rpartition("@")[2]
