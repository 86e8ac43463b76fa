"""Text from tokens as they come, against decoding all of them, and stop strings against a search in the whole text."""

from __future__ import annotations

import itertools
import random

import pytest

from epo_jax.model.tokenizer import Tokenizer
from epo_jax.serve.text import StopStrings, TextStream
from epo_jax.strategist import MINI
from tests.model import real_tokenizers
from tests.model.hostile_text import hostile_texts

TEXTS = ["Thought: go to shelf 12.", "  two  spaces\n\n日本語 and é, 😀😀 👩‍👩‍👧 \t", "", "naïve façade — “quoted” ﷽", "🇩🇪🇯🇵", " \ufffd kept"]


@pytest.fixture(scope="module", params=["mini", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte pairs, and pieces with a space mark and bytes spelt out."""
    if request.param == "mini":
        return Tokenizer.load(MINI)
    return Tokenizer.load(real_tokenizers.sentencepiece_folder(tmp_path_factory.mktemp("text-stream"), "v3"))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer.decode)
    return [*(stream.add(token) for token in ids), stream.finish()]


def test_the_pieces_make_the_whole_text_and_break_no_character(tokenizer: Tokenizer) -> None:
    several = 0
    for text in [*TEXTS, *hostile_texts(120, seed=0)]:
        ids = tokenizer.encode(text)
        told = pieces(tokenizer, ids)
        assert "".join(told) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(told) or "\ufffd" in text
        several += sum(piece == "" for piece in told[:-1])
    assert several > 0  # some characters do lie in several tokens


def test_any_bytes_that_a_model_may_sample(tokenizer: Tokenizer) -> None:
    """Tokens in random order, broken characters among them."""
    chooser = random.Random(0)
    for _ in range(60):
        ids = [chooser.randrange(tokenizer.vocab_size) for _ in range(12)]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_reply_cut_inside_a_character_is_told_to_its_end() -> None:
    tokenizer = Tokenizer.load(MINI)
    ids = tokenizer.encode("so 😀")
    told = pieces(tokenizer, ids[:-1])
    assert told[-1].strip("\ufffd") == "" != told[-1] and "".join(told[:-1]) == "so "


def test_stop_strings_against_a_search_in_the_whole_text() -> None:
    chooser = random.Random(1)
    for _ in range(3000):
        text = "".join(chooser.choice("ab\n") for _ in range(chooser.randrange(14)))
        stops = ["".join(chooser.choice("ab\n") for _ in range(chooser.randint(1, 4))) for _ in range(chooser.randrange(4))]
        cuts = sorted(chooser.randrange(len(text) + 1) for _ in range(4))
        fed = [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]
        scan, told = StopStrings(stops), ""
        expected, found = text, False
        heard = ""
        for piece in fed:  # of the pieces so far, cut at the earliest stop string in them
            heard += piece
            places = [heard.find(stop) for stop in stops if stop in heard]
            if places:
                expected, found = heard[: min(places)], True
                break
        for piece in fed:
            told += scan.add(piece)
            assert expected.startswith(told)  # nothing is told that has to be taken back
        assert told + scan.finish() == expected and scan.found == found


def test_nothing_is_held_back_without_need() -> None:
    scan = StopStrings(["STOP"])
    assert [scan.add(piece) for piece in ("go S", "T", "ART", "ST")] == ["go ", "", "START", ""]
    assert scan.finish() == "ST"
