"""A small byte-level BPE tokenizer for a model made from nothing, saved as a Hugging Face folder.

A page divider " [SEP]" is one token. Digits stand alone (with the space before the first of them), so "shelf 12" is " shelf", " 1", "2": names of objects generalise to numbers that
were rare in the texts. The chat template is as short as can be and only ever appends: <|user|>content<|agent|>content<|end|>.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

PAD, END, USER, AGENT = "<|pad|>", "<|end|>", "<|user|>", "<|agent|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + AGENT + "{{ message['content'] }}" + END + "{% else %}" + USER + "{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + AGENT + "{% endif %}"
)
# One digit, the divider of WebShop's pages, a word, other signs, or white space: no merge goes across.
_PIECE = r" ?\d| ?\[SEP\]| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMALLEST_VOCABULARY = 4 + 256  # the special tokens and every byte


def train(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` ids, learnt from `texts`; the same texts give the same tokenizer.

    Ids 0 to 3 are <|pad|>, <|end|>, <|user|>, <|agent|>; then the bytes; then the merges.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size {vocab_size} is below {SMALLEST_VOCABULARY}: the special tokens and the 256 bytes need that many")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, USER, AGENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, AGENT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1_000_000,
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike[str]) -> None:
    """Write tokenizer.json, tokenizer_config.json (chat template inside) so that `AutoTokenizer.from_pretrained(folder)` loads them."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    config = folder / "tokenizer_config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    record["tokenizer_class"] = "PreTrainedTokenizerFast"  # the names that older transformers know too
    record["additional_special_tokens"] = record.pop("extra_special_tokens")
    record.pop("backend", None)
    config.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """What `save` wrote."""
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
