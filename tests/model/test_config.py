"""`config.json` in its old and new spellings, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from epo_jax.errors import UserError
from epo_jax.model import rope
from epo_jax.model.config import LlamaConfig, RopeScaling

LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "max_position_embeddings": 131072, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
}  # fmt: skip
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0, "rope_scaling": SCALING},
        {"rope_parameters": SCALING | {"rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_scaling": {key: value for key, value in SCALING.items() if key != "rope_type"} | {"type": "llama3"}},
    ],
)
def test_both_spellings_of_rope(spelling) -> None:
    config = LlamaConfig.from_hf(LLAMA_3_1 | spelling)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert config.head_dim == 128 and config.eos_token_ids == (128001, 128008, 128009)
    assert config.num_params == 8_030_261_248  # Meta's own count of Llama 3.1 8B


def test_rope_without_scaling() -> None:
    for spelling in ({"rope_theta": 1e6, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}):
        config = LlamaConfig.from_hf(LLAMA_3_1 | spelling)
        assert config.rope_theta == 1e6 and config.rope_scaling is None
    assert LlamaConfig.from_hf(LLAMA_3_1).rope_theta == 10000.0


def test_mistral_has_its_own_defaults() -> None:
    mistral = LLAMA_3_1 | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert LlamaConfig.from_hf(mistral | {"sliding_window": 4096}).sliding_window == 4096
    assert LlamaConfig.from_hf(mistral | {"sliding_window": None}).sliding_window is None  # v0.3
    assert LlamaConfig.from_hf(LLAMA_3_1 | {"sliding_window": 4096}).sliding_window is None  # Llama never slides


def test_what_we_write_reads_back_the_same() -> None:
    config = LlamaConfig.from_hf(LLAMA_3_1 | {"rope_theta": 5e5, "rope_scaling": SCALING, "head_dim": 96, "pad_token_id": 7})
    for variant in (config, dataclasses.replace(config, architecture="mistral", sliding_window=17, rope_scaling=None, eos_token_ids=(2,))):
        written = variant.to_hf()
        assert LlamaConfig.from_hf(written) == variant
        for absent in ({"rope_parameters"}, {"rope_theta", "rope_scaling"}):  # what transformers 4 and 5 look at
            assert LlamaConfig.from_hf({key: value for key, value in written.items() if key not in absent}) == variant


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, ["Qwen2ForCausalLM", "LlamaForCausalLM or MistralForCausalLM"]),
        ({"architectures": [], "model_type": "gpt2"}, ["gpt2"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["yarn"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        ({"quantization_config": {"bits": 4}}, ["quantised"]),
        ({"num_key_value_heads": 5}, ["32 query heads", "5 key/value heads"]),
        ({"head_dim": 7}, ["head_dim", "even"]),
        ({"hidden_size": 0}, ["hidden_size"]),
        ({"vocab_size": "many"}, ["vocab_size"]),
    ],
)
def test_refusals(change, words) -> None:
    with pytest.raises(UserError) as caught:
        LlamaConfig.from_hf(LLAMA_3_1 | change)
    for word in words:
        assert word in str(caught.value)


def test_missing_sizes_are_named() -> None:
    with pytest.raises(UserError, match="num_hidden_layers"):
        LlamaConfig.from_hf({key: value for key, value in LLAMA_3_1.items() if key != "num_hidden_layers"})


def test_llama_3_1_frequencies() -> None:
    """Meta's rule at its three regimes: short waves kept, long waves eight times slower, a blend between."""
    plain = rope.frequencies(LlamaConfig.from_hf(LLAMA_3_1 | {"rope_theta": 5e5}))
    scaled = rope.frequencies(LlamaConfig.from_hf(LLAMA_3_1 | {"rope_theta": 5e5, "rope_scaling": SCALING}))
    ratio = plain / scaled
    waves = 2 * 3.141592653589793 / plain
    assert (abs(ratio[waves < 8192 / 4] - 1) < 1e-6).all()
    assert (abs(ratio[waves > 8192 / 1] - 8) < 1e-5).all()
    between = ratio[(waves > 8192 / 4) & (waves < 8192)]
    assert len(between) > 3 and (between > 1).all() and (between < 8).all()
