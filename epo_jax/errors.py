"""The exceptions that are told in one sentence: what a person can mend, what the same command may mend; and how several faults are told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """Bad input, told in one sentence: what was wrong and what to do.

    Command-line programs print the sentence on standard error and exit with `exit_code`. parts: the faults, where it tells several.
    """

    exit_code = 2

    def __init__(self, sentence: str, parts: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.parts = parts


class TryAgain(UserError):
    """What nobody need mend, as the same command may well succeed: processes of the run that did not come, or were lost before it began."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h, for what starts a run again by itself


class NotFinite(UserError, FloatingPointError):
    """Weights, a loss or logits that are no finite numbers: nothing that follows from them is kept."""


def all_or_what_is_missing(*makers: Callable[[], Any]) -> list[Any]:
    """What each of `makers` returns. Raises one `UserError` that names everything that is missing, each thing once."""
    made, missing = [], []
    for make in makers:
        try:
            made.append(make())
        except UserError as error:
            missing += [part for part in error.parts or [str(error).rstrip(".")] if part not in missing]
    if len(missing) > 1:
        told = "; ".join(f"({number}) {text}" for number, text in enumerate(missing, 1))
        raise UserError(f"this run misses {len(missing)} things. {told}.", tuple(missing))
    if missing:
        raise UserError(missing[0] + ".")
    return made
