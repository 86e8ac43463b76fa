"""Hugging Face folders in and out, against transformers; and what happens to damaged ones."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from epo_jax.errors import UserError
from epo_jax.mesh import make_mesh
from epo_jax.model import hf_weights, llama

TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12) * 3 % 96


def tiny(kind="llama", **changes):
    sizes = dict(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ) | changes  # fmt: skip
    torch.manual_seed(0)
    if kind == "mistral":
        return transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.float().numpy()


def our_logits(config, params):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1], dtype=jnp.int32), TOKENS.shape)
    return np.asarray(llama.logits(params, config, llama.hidden_states(params, config, TOKENS, positions, jnp.ones_like(positions))))


@pytest.mark.parametrize("kind, tied, shard", [("llama", False, "50KB"), ("llama", True, "5GB"), ("mistral", False, "5GB")])
def test_loads_what_transformers_saves(tmp_path, kind, tied, shard):
    model = tiny(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "50KB")
    config, params = hf_weights.load(tmp_path)
    assert ("head" in params) != tied
    np.testing.assert_allclose(our_logits(config, params), their_logits(model), atol=1e-4)


def test_transformers_loads_what_we_save_and_it_comes_back_bit_for_bit(tmp_path):
    tiny(tie_word_embeddings=True).save_pretrained(tmp_path / "theirs")
    config, params = hf_weights.load(tmp_path / "theirs")
    params = jax.tree.map(lambda x: x * 1.25, params)  # not what any other file holds
    hf_weights.save(tmp_path / "ours", config, params, max_shard_bytes=40_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again, back = hf_weights.load(tmp_path / "ours")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, back)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    np.testing.assert_allclose(our_logits(config, params), their_logits(loaded), atol=1e-4)
    assert loaded.generation_config.eos_token_id == 2


def test_bfloat16_files_are_read_exactly_and_kept(tmp_path):
    tiny().to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    config, params = hf_weights.load(tmp_path / "theirs", dtype=jnp.float32)
    assert params["embed"].dtype == jnp.float32
    hf_weights.save(tmp_path / "ours", config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    _, back = hf_weights.load(tmp_path / "ours", dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, back)


def test_each_device_gets_its_part(tmp_path):
    tiny(intermediate_size=64).save_pretrained(tmp_path)
    config, whole = hf_weights.load(tmp_path)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    _, parts = hf_weights.load(tmp_path, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert parts["layers"]["w_gate"].addressable_shards[0].data.shape == (3, 16, 32)


def test_saving_replaces_a_folder_and_a_full_disk_leaves_it(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path / "theirs")
    config, params = hf_weights.load(tmp_path / "theirs")
    hf_weights.save(tmp_path / "ours", config, params)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert len({path.stat().st_mode for path in (tmp_path / "ours").iterdir()}) == 1  # who may read one file may read all

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_weights, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        hf_weights.save(tmp_path / "ours", config, jax.tree.map(jnp.zeros_like, params))
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (_truncate, "damaged or cut off"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "damaged or cut off"),
        (lambda folder: _change_config(folder, intermediate_size=64), "gate_proj.weight.*shape"),
        (lambda folder: _change_config(folder, num_hidden_layers=4), r"lack the tensor model\.layers\.3"),
        (lambda folder: _change_config(folder, num_hidden_layers=2), r"hold the tensor model\.layers\.2"),
        (lambda folder: _change_config(folder, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret"}}'), "weight_map"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}'), "lacks gone"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_told_in_one_sentence(tmp_path, damage, words):
    tiny().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as told:
        hf_weights.load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_file_of_whole_numbers_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="model.norm.weight.*I8"):
        hf_weights.load(tmp_path)
    shutil.rmtree(tmp_path)
