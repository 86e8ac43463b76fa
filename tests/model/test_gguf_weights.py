"""GGUF files against transformers' own reading of them, and against a file that is written here."""

from __future__ import annotations

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from epo_jax.errors import UserError
from epo_jax.model import gguf_weights, llama
from tests.model import real_tokenizers

D, F, N, K, H, V, L = 16, 24, 4, 2, 4, 20, 2


def write(path, *, architecture="llama", leave_out=(), change=None):
    """A small Llama in llama.cpp's layout; returns the transformers model that it was made from."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=N, num_key_value_heads=K, rope_theta=5000.0, rms_norm_eps=1e-5)
    ).eval()  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(L)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{index}" for index in range(V)])
    writer.add_eos_token_id(2)
    names = gguf_weights._LAYER_NAMES
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if name.startswith("model.layers."):
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            if rest.startswith(("self_attn.q_proj", "self_attn.k_proj")):  # as llama.cpp's converter permutes them
                heads = N if "q_proj" in rest else K
                array = array.reshape(heads, 2, H // 2, D).swapaxes(1, 2).reshape(array.shape)
            target = f"blk.{layer}.{names[rest]}"
        else:
            target = gguf_weights._NAMES[name]
        if target not in leave_out:
            writer.add_tensor(target, np.ascontiguousarray(change(target, array) if change else array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def our_logits(config, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return np.asarray(llama.logits(params, config, llama.hidden_states(params, config, tokens, positions, jnp.ones_like(positions))))


def test_a_written_file_gives_the_logits_it_was_made_from(tmp_path):
    model = write(tmp_path / "m.gguf")
    config, params = gguf_weights.load(tmp_path / "m.gguf")
    assert (config.head_dim, config.rope_theta, config.tie_embeddings, config.eos_token_ids) == (H, 5000.0, False, (2,))
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(our_logits(config, params, tokens), theirs, atol=1e-4)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2'"),
        ({"leave_out": ("blk.1.ffn_up.weight",)}, "lacks the tensor blk.1.ffn_up.weight"),
        ({"change": lambda name, array: array[:, :-1] if name == "blk.0.ffn_up.weight" else array}, r"blk\.0\.ffn_up\.weight.*shape"),
    ],
)  # fmt: skip
def test_another_or_incomplete_model_is_refused(tmp_path, options, words):
    if options.get("architecture"):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    else:
        write(tmp_path / "m.gguf", **options)
    with pytest.raises(UserError, match=words):
        gguf_weights.load(tmp_path / "m.gguf")


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no GGUF file"):
        gguf_weights.load(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_bytes(b"hello" * 100)
    with pytest.raises(UserError, match="damaged, cut off, or no GGUF file"):
        gguf_weights.load(tmp_path / "text.gguf")
    write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.gguf"):
        gguf_weights.load(tmp_path / "cut.gguf")


@pytest.mark.slow
def test_smollm2_gives_transformers_logits():
    path = real_tokenizers.smollm2_gguf()
    config, params = gguf_weights.load(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    tokens = np.asarray(gguf_weights.tokenizer(path)(["The cat sat on the mat and looked at the dog."])["input_ids"], np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    ours = our_logits(config, params, tokens)
    np.testing.assert_allclose(ours, theirs, atol=5e-4)  # logits reach 44: float32 differs in the last digits
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))
