"""GGUF files (llama.cpp's format) of Llama-architecture models: weights, tokenizer and chat template, without torch.

Quantised tensors are brought to float32 one at a time. llama.cpp stores the rows of the query and key projections in another
order (its rope turns neighbouring numbers, Hugging Face's turns halves); that order is undone here.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import gguf
import numpy as np
import tokenizers
from jax.sharding import Mesh
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epo_jax.errors import UserError
from epo_jax.model.config import LlamaConfig
from epo_jax.model.hf_weights import Index, Layout, place
from epo_jax.model.weights import Params

# Hugging Face's name (without layer) -> GGUF's.
_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types

# How a pre-tokenizer cuts text before byte-pair merges, by GGUF's name for it.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def load(path: str | os.PathLike[str], mesh: Mesh | None = None, dtype: Any = np.float32) -> tuple[LlamaConfig, Params]:
    """Configuration and parameters, each device's part placed by itself.

    Raises `UserError` for a missing or truncated file, another architecture, a missing tensor or a wrong shape.
    """
    path = pathlib.Path(path)
    config, tensors = _described(path)

    @functools.lru_cache(maxsize=1)
    def whole(name: str, shape: tuple[int, ...], heads: int) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{path} lacks the tensor {name}: it is not a complete Llama model.")
        array = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        if array.shape != shape:
            raise UserError(f"the tensor {name} in {path} has shape {array.shape}, and its metadata asks for {shape}: get the file again.")
        return _rows_in_halves(array, heads) if heads else array

    def read(name: str, layout: Layout, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        heads = shape[1] if layout.name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight") else 0
        return layout.read(whole(_gguf_name(name), layout.shape(shape), heads)[layout.index(index, shape)], config.head_dim)

    return config, place(config, mesh, dtype, read)


def examine(path: str | os.PathLike[str]) -> tuple[LlamaConfig, int]:
    """Configuration, and bytes on disk, of a file that is not cut off; of the weights nothing is read. Raises `UserError` as `load`."""
    config, _ = _described(pathlib.Path(path))
    return config, pathlib.Path(path).stat().st_size


def _described(path: pathlib.Path) -> tuple[LlamaConfig, dict[str, gguf.ReaderTensor]]:
    reader = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return _config(path, _Fields(path, reader), tied="output.weight" not in tensors), tensors


def tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The byte-pair tokenizer and chat template that the file carries."""
    path = pathlib.Path(path)
    fields = _Fields(path, _open(path))
    kind = fields.get("tokenizer.ggml.model", "?")
    if kind != "gpt2":
        raise UserError(f"{path} carries a tokenizer of kind {kind!r}: only byte-pair ones ('gpt2') are read; use the model's Hugging Face folder.")
    words, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges, fuse_unk=False))
    cut = fields.get("tokenizer.ggml.pre", "default")
    backend.normalizer = normalizers.NFC() if cut == "qwen2" else None
    backend.pre_tokenizer = _pre_tokenizer(path, cut)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word, kind in zip(words, types, strict=True) if kind == _CONTROL])
    backend.add_tokens([AddedToken(word, normalized=False) for word, kind in zip(words, types, strict=True) if kind == _USER_DEFINED])

    def special(name: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{name}_token_id", None)
        return None if index is None else words[index]

    result = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special("bos"), eos_token=special("eos"), pad_token=special("padding") or special("eos"), unk_token=special("unknown")
    )  # fmt: skip
    result.chat_template = fields.get("tokenizer.chat_template", None)
    return result


def _pre_tokenizer(path: pathlib.Path, kind: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("smollm", "gpt-2", "default", "starcoder"))
    if kind in ("smollm", "starcoder"):
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if kind in ("gpt-2", "default"):
        return byte_level
    if kind in ("llama-bpe", "llama3"):
        return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"), byte_level])
    raise UserError(f"{path} cuts text by the rule {kind!r}, which is not known here: use the model's Hugging Face folder.")


class _Fields:
    """A file's metadata as plain Python values."""

    def __init__(self, path: pathlib.Path, reader: gguf.GGUFReader) -> None:
        self._path, self._fields = path, reader.fields

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            raise UserError(f"{self._path} has no {name} in its metadata: it is not a complete Llama model.")
        return self._fields[name].contents()

    def get(self, name: str, default: Any) -> Any:
        return self[name] if name in self._fields else default


def _open(path: pathlib.Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise UserError(f"there is no GGUF file {path}.")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split()) or type(error).__name__}): it is damaged, cut off, or no GGUF file.") from error


def _config(path: pathlib.Path, fields: _Fields, *, tied: bool) -> LlamaConfig:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise UserError(f"{path} holds a model of architecture {architecture!r}: only 'llama' is supported.")
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    if fields.get("llama.rope.scaling.type", "none") not in ("none", ""):
        raise UserError(f"{path} scales rope in a way that GGUF does not spell out: use the model's Hugging Face folder.")
    eos = fields.get("tokenizer.ggml.eos_token_id", None)
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=fields["llama.feed_forward_length"],
        num_layers=fields["llama.block_count"],
        num_heads=heads,
        num_kv_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.attention.key_length", width // heads),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        rms_norm_eps=float(np.float32(fields["llama.attention.layer_norm_rms_epsilon"])),
        tie_embeddings=tied,
        max_positions=fields["llama.context_length"],
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id", None),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id", eos),
    )


def _gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return _NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def _rows_in_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """[heads*H, D] with each head's rows as (H/2 pairs of 2) -> as (2 halves of H/2)."""
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
