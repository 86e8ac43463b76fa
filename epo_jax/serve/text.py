"""Sampled tokens to text as they come: never half a character, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character


class TextStream:
    """The text of a growing list of tokens. What `add` and `finish` return, put together, is the text of all tokens.

    A token's text can depend on the tokens before it (a space that is only written between words) and on those after it (a character whose
    bytes are spread over several tokens). So a window is decoded, from the last boundary at which the text was whole: once without the new
    tokens and once with them, and the difference is what they say. Text that ends in an unfinished character waits for the next token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0  # tokens of the window whose text has been returned

    def add(self, token: int) -> str:
        """The text that this token completes, "" where it completes none."""
        self._window.append(token)
        return self._difference(final=False)

    def finish(self) -> str:
        """What is left: an unfinished character becomes U+FFFD."""
        return self._difference(final=True)

    def _difference(self, *, final: bool) -> str:
        before, after = self._decode(self._window[: self._told]), self._decode(self._window)
        if len(after) <= len(before) or (after.endswith(UNFINISHED) and not final):
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return after[len(before) :]


class StopStrings:
    """Ends a text before the first of some strings. Text that could be the beginning of one is held back until that is known."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that may be told now; `found` is true once a stop string has come, and then nothing more is told."""
        if self.found:
            return ""
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found = True
            return self._held[: min(places)]
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return "" if self.found else held

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the held text with which `stop` begins."""
        return next((size for size in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:size])), 0)
