"""What can go wrong with an API, and for whom: one try, one call, or the whole run."""

from __future__ import annotations

from epo_jax.errors import UserError


class ApiError(Exception):
    """One call failed for good; another call may not. The message is one sentence that can become part of `trajectory.masked`."""


class NoUsableAnswer(ApiError):
    """The model was asked as often as may be, and no answer would do, or it refused."""


class NotInCache(ApiError):
    """A replay offline was asked for a reply that its cache does not hold."""


class ApiFatal(UserError):
    """Every call would fail alike (a wrong key, an unknown model, a server that stays away): the run should stop, saved.

    Whoever turns the failure of one episode into a mask must let `UserError` pass.
    """


class BudgetSpent(UserError):
    """The next call could pass the budget, so it was not made: the run should stop, saved."""


# Kinds of faults, as they are counted. A try that ends in one of these is repeated while the call has tries and time left.
REPEATED = (
    "rate_limited",  # 429
    "server_error",  # 5xx
    "conflict",  # 409
    "timeout",  # no whole answer within timeout_s, or 408
    "connection",  # refused, reset, or closed before an answer began
    "half_body",  # closed in the middle of an answer
    "too_long",  # more bytes than any answer needs
    "invalid_json",
    "wrong_shape",
    "no_choice",
)
REFUSED = "refused"  # the request itself, for example a prompt longer than the context: this call fails, at once
FATAL = "fatal"  # see ApiFatal
KINDS = (*REPEATED, REFUSED, FATAL)


class Fault(Exception):
    """One try failed. `retry_after` is in seconds, as the server asked. `charged`: whether the server may have charged for it."""

    def __init__(self, kind: str, sentence: str, *, retry_after: float | None = None, charged: bool = False, about: str = "") -> None:
        super().__init__(sentence)
        self.kind, self.sentence, self.retry_after, self.charged = kind, sentence, retry_after, charged
        self.about = about  # a refused request: the parameter or code that the server named, in lower case


def one_line(text: str, longest: int = 300) -> str:
    """What a server or model said, fit to stand within a sentence: one line, no control characters, bounded."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 10 * longest]).split())[:longest]
