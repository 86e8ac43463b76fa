"""What a prompt may hold of other people's text."""

from __future__ import annotations

import unicodedata

import pytest

from epo_jax.untrusted import CUT, one_line, plain
from tests.model.hostile_text import HOSTILE, hostile_texts

MARKERS = [text for text in HOSTILE] + ["<｜User｜>", "<start_of_turn>", "<<SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[gMASK]", "<strategy>", "</strategy>"]


@pytest.mark.parametrize("marker", MARKERS)
def test_no_marker_lives(marker):
    hidden = [marker, f"x{marker}y", marker[0] + "\u200b" + marker[1:], marker[0] + "\x00" + marker[1:], "<" + marker, marker.lower(), "[" + marker]
    for text in hidden:
        assert marker not in plain(text, 1000) and marker not in one_line(text, 1000)
        assert [c for c in plain(text, 1000) if c.isalnum()] == [c for c in text if c.isalnum()]  # what can be read stays


def test_no_mixture_of_markers_lives():
    for text in hostile_texts(3_000, seed=1):
        for form in (plain(text, 1000), one_line(text, 1000)):
            assert not any(marker in form for marker in MARKERS), repr(text)


def test_what_cannot_be_seen_is_removed_and_what_can_stays():
    text = "a\u202eb\u2066c\u200d\ufeffd\ud800e\U000e0041f\u0007g\te\r\nf\u2028g"
    assert plain(text, 100) == "abcdefg\te\nf\ng"
    harmless = 'Back to Search [SEP] < Prev [SEP] Next > [SEP] $4.99, size: 3 < 5; {"color": "navy"} 日本 é — 😀'
    assert plain(harmless, 1000) == harmless
    assert {unicodedata.category(c) for c in plain("".join(map(chr, range(0x3000))), 0x3000)}.isdisjoint({"Cf", "Cs", "Cn", "Co"})


def test_length_is_bounded_and_told():
    assert plain("x" * 10, 10) == "x" * 10
    assert plain("x" * 10_000_000, 10) == "x" * 10 + CUT
    assert one_line("a \n\n b\t c\u2029d", 100) == "a b c d"
