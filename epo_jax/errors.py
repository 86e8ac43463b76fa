"""The one exception for input that a person can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, told in one sentence: what was wrong and what to do.

    Command-line programs print the sentence on standard error and exit with code 2.
    """
