"""Tags: cases worked by hand, as the published engine renders them."""

from __future__ import annotations

import time

import pytest

from envs.sotopia.markup import visible


@pytest.mark.parametrize(
    ("text", "first", "second", "environment"),
    [
        ("plain & simple < 3", "plain & simple < 3", "plain & simple < 3", "plain & simple < 3"),
        ("a <p viewer='agent_0'>b</p> c", "a b c", "a  c", "a b c"),
        ('at a party. <p viewer="environment">They know Al.</p>', "at a party.", "at a party.", "at a party. They know Al."),
        ("go (<extra_info>now <strategy_hint>fast</strategy_hint></extra_info>)", *["go (now fast)"] * 3),
        ("a <foo>b</foo> c", "a  c", "a  c", "a b c"),
        ("<p viewer='agent_1'>q <extra_info>w</extra_info></p>e", "e", "q we", "q we"),
        # damaged: too little is shown rather than too much
        ("a <p viewer='agent_1'>b", "a", "a b", "a b"),
        ("a <p viewer='agent_1'>b <extra_info>c</p> d", "a  d", "a b c d", "a b c d"),
        ("a </p> b", *["a  b"] * 3),
    ],
)
def test_who_reads_what(text, first, second, environment):
    assert [visible(text, viewer) for viewer in ("agent_0", "agent_1", "environment")] == [first, second, environment]


def test_time_is_linear():
    started = time.process_time()
    for text in ("<p>" * 20_000, "<" * 200_000, "<p viewer='" * 20_000, "</p>" * 20_000, "<p>" * 20_000 + "</extra_info>" * 20_000):
        visible(text, "agent_0")
    assert time.process_time() - started < 2
