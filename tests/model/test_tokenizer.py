"""The tokenizer layer against sentencepiece and transformers, and against hostile text."""

from __future__ import annotations

import json
import random

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from epo_jax.errors import UserError
from epo_jax.model import mini_tokenizer
from epo_jax.model.tokenizer import Segment, Tokenizer
from tests.model import real_tokenizers
from tests.model.hostile_text import hostile_texts

@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.getbasetemp()  # one folder for the whole run, so that what is read from GGUF is read once


@pytest.fixture(scope="module", params=["smollm2", "llama3", "sentencepiece_v1", "sentencepiece_v3", "mini", "sentencepiece_slow"])
def any_tokenizer(request, scratch) -> Tokenizer:
    if request.param == "smollm2":
        return Tokenizer.load(real_tokenizers.smollm2_folder(scratch))
    if request.param == "llama3":
        return Tokenizer(real_tokenizers.llama3())
    if request.param == "mini":
        return Tokenizer(real_tokenizers.mini())
    if request.param == "sentencepiece_slow":
        return Tokenizer(slow_backend(scratch))
    version = request.param[-2:]
    return Tokenizer.load(real_tokenizers.sentencepiece_folder(scratch / version, version))


def slow_backend(scratch) -> SentencePieceBackend:
    folder = real_tokenizers.sentencepiece_folder(scratch / "slow", "v3")
    return SentencePieceBackend(
        vocab_file=str(folder / "tokenizer.model"), legacy=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=["[INST]", "[/INST]"]
    )


def test_outside_text_never_becomes_a_special_token(any_tokenizer):
    special = set(any_tokenizer.backend.added_tokens_decoder)
    for text in hostile_texts(400, seed=1):
        ids = any_tokenizer.encode(text)
        assert special.isdisjoint(ids), text
        assert special.isdisjoint(any_tokenizer.encode_segments([Segment(text, False)], first=True)), text


def test_outside_text_reads_back(any_tokenizer):
    for text in hostile_texts(200, seed=2):
        if "▁" in text:  # sentencepiece's own mark for a space
            continue
        ids = any_tokenizer.encode("go" + text + "go")
        assert any_tokenizer.decode(ids) == "go" + text + "go"


def test_template_text_does_become_special_tokens(any_tokenizer):
    end = min(any_tokenizer.stop_ids)
    content = any_tokenizer.backend.added_tokens_decoder[end].content
    ids = any_tokenizer.encode_segments([Segment("a" + content, True), Segment(content, False), Segment(content + "b", True)], first=True)
    assert ids.count(end) == 2
    assert any_tokenizer.decode(ids).replace(" ", "") == "a" + content + "b"


def test_plain_text_gets_the_ids_that_transformers_gives(any_tokenizer):
    texts = ["You are in the middle of a room.", "a  b\n\n   c", "put 12 eggs in fridge 1", "é 日本 😀 x", "trailing space ", "\nline"]
    end = any_tokenizer.backend.added_tokens_decoder[min(any_tokenizer.stop_ids)].content
    for text in texts:
        behind = any_tokenizer.encode_segments([Segment(end, True), Segment(text, False)], first=True)
        assert behind == any_tokenizer.backend.encode(end + text, add_special_tokens=False)
        assert behind[1:] == any_tokenizer.encode(text)
        assert any_tokenizer.encode_segments([Segment(text, False)], first=True) == any_tokenizer.backend.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_a_sentencepiece_folder_gives_the_ids_of_sentencepiece(scratch, version):
    folder = real_tokenizers.sentencepiece_folder(scratch / version, version)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False  # as text stands behind a special token
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    tokenizer = Tokenizer.load(folder)
    chooser = random.Random(3)
    texts = ["a  b", "  two", "def f(x):\n    return x", "You see a cabinet 1,  a desk 2.\n\n   Go."]
    texts += ["".join(chooser.choice(" \n abcdethe<[/INST]0123日😀é") for _ in range(chooser.randint(1, 60))) for _ in range(500)]
    for text in texts:
        assert tokenizer.encode(text) == reference.encode(text), text


def test_a_word_level_vocabulary_with_a_special_word_is_safe():
    words = {"<unk>": 0, "<|end|>": 1, "go": 2, "<": 3, "|": 4, "e": 5, "n": 6, "d": 7, ">": 8}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="<unk>"))
    assert backend.encode("<|end|>").ids == [1]  # the trap is real
    assert tokenizer.encode("<|end|>") == [3, 4, 5, 6, 7, 4, 8]


def test_saved_tokenizer_is_the_same(any_tokenizer, tmp_path):
    if isinstance(any_tokenizer.backend, SentencePieceBackend):
        pytest.skip("transformers saves no tokenizer.json for its sentencepiece backend; the fast ones are tested")
    if any_tokenizer.vocab_size > 100_000:
        pytest.skip("Llama 3's 9 MB of JSON take 10 s; SmolLM2's, of the same kind, are tested")
    any_tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == any_tokenizer.fingerprint
    assert again.stop_ids == any_tokenizer.stop_ids and again.vocab_size == any_tokenizer.vocab_size
    for text in ("a  b", "put the egg 12 in fridge 1\n", "<|im_end|> </s>"):
        assert again.encode(text) == any_tokenizer.encode(text)
    others = AutoTokenizer.from_pretrained(str(tmp_path))
    assert others("go to a  shelf", add_special_tokens=False)["input_ids"] == any_tokenizer.encode_segments([Segment("go to a  shelf", False)], first=True)


def test_fingerprint_tells_tokenizers_apart():
    texts = real_tokenizers.MINI_TEXTS
    first, same, other = (Tokenizer(mini_tokenizer.train(texts, size)) for size in (400, 400, 300))
    changed = Tokenizer(real_tokenizers.with_template(mini_tokenizer.train(texts, 400), "{{ messages[0]['content'] }}"))
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, other.fingerprint, changed.fingerprint}) == 3


def test_stop_ids_come_from_every_place_that_names_them(tmp_path):
    tokenizer = mini_tokenizer.train(real_tokenizers.MINI_TEXTS, 300)
    mini_tokenizer.save(tokenizer, tmp_path)
    assert Tokenizer.load(tmp_path).stop_ids == {1}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.load(tmp_path).stop_ids == {1, 2, 7}
    no_eos = mini_tokenizer.train(real_tokenizers.MINI_TEXTS, 300)
    no_eos.eos_token = None
    assert Tokenizer(no_eos).stop_ids == {1}  # the chat template writes it after a reply
    no_eos.chat_template = None
    with pytest.raises(UserError, match="end token"):
        Tokenizer(no_eos)


def test_bad_folders_are_told(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(tmp_path)


# --- the mini tokenizer -----------------------------------------------------------------------------------------------------------------------


def test_mini_tokenizer_layout(tmp_path):
    tokenizer = mini_tokenizer.train(real_tokenizers.MINI_TEXTS, 420)
    assert len(tokenizer) <= 420
    assert [tokenizer.convert_ids_to_tokens(index) for index in range(4)] == ["<|pad|>", "<|end|>", "<|user|>", "<|agent|>"]
    mini_tokenizer.save(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded.pad_token_id == 0 and loaded.eos_token_id == 1
    text = loaded.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>a<|agent|>b<|end|><|user|>c<|agent|>"
    assert set(loaded.all_special_ids) == {0, 1, 2, 3}


def test_mini_tokenizer_splits_digits_and_knows_every_byte():
    tokenizer = Tokenizer(real_tokenizers.mini())
    pieces = [tokenizer.decode([index]) for index in tokenizer.encode("shelf 213 and 7")]
    assert [piece for piece in pieces if any(letter.isdigit() for letter in piece)] == [" 2", "1", "3", " 7"]
    every = "".join(map(chr, range(1, 600))) + "日本😀"
    assert tokenizer.decode(tokenizer.encode(every)) == every


def test_mini_tokenizer_is_the_same_for_the_same_texts():
    first, again = (mini_tokenizer.train(iter(real_tokenizers.MINI_TEXTS), 420) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    with pytest.raises(ValueError, match="260"):
        mini_tokenizer.train(real_tokenizers.MINI_TEXTS, 259)


def test_a_gguf_file_gives_the_ids_of_transformers(scratch):
    pytest.importorskip("epo_jax.model.gguf_weights")
    folder = real_tokenizers.smollm2_folder(scratch)  # read from the same file by transformers
    ours, theirs = Tokenizer.load(real_tokenizers.smollm2_gguf()), Tokenizer.load(folder)
    for text in ("put 12 eggs  in fridge 1", "é 日本 😀\n\n", "<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.stop_ids == theirs.stop_ids and ours.chat_template == theirs.chat_template
