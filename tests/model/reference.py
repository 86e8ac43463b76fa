"""transformers' own Llama and Mistral in float32, as the independent truth, and random parameters in both their formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import torch
import transformers

from epo_jax.model.config import LlamaConfig, RopeScaling
from epo_jax.model.weights import Params, init_params

LLAMA_2 = LlamaConfig(
    vocab_size=131, hidden_size=48, intermediate_size=56, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, max_positions=256,
    bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip
LLAMA_3 = dataclasses.replace(LLAMA_2, num_heads=6, num_kv_heads=2, rope_theta=500000.0, eos_token_ids=(2, 3))
LLAMA_3_1 = dataclasses.replace(
    LLAMA_3, rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
)  # fmt: skip
LLAMA_3_2 = dataclasses.replace(LLAMA_3_1, tie_embeddings=True, head_dim=10, rope_scaling=dataclasses.replace(LLAMA_3_1.rope_scaling, factor=32.0))
MISTRAL = dataclasses.replace(LLAMA_3, architecture="mistral", sliding_window=7, rope_theta=10000.0)
VARIANTS = {"llama2": LLAMA_2, "llama3": LLAMA_3, "llama3.1": LLAMA_3_1, "llama3.2": LLAMA_3_2, "mistral": MISTRAL}


def random_params(config: LlamaConfig, seed: int = 0) -> Params:
    """Parameters of a scale that makes logits of a few units and norms that are not all ones, so that mistakes show."""
    params = init_params(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def to_hf_arrays(config: LlamaConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters (or their gradients) under transformers' names and in torch's [out, in]; written apart from the library's own."""
    d = config.hidden_size
    yield "model.embed_tokens.weight", np.array(params["embed"])
    yield "model.norm.weight", np.array(params["final_norm"])
    if not config.tie_embeddings:
        yield "lm_head.weight", np.array(params["head"]).T
    for i in range(config.num_layers):
        layer = {name: np.array(array[i]) for name, array in params["layers"].items()}
        prefix = f"model.layers.{i}."
        yield prefix + "input_layernorm.weight", layer["attn_norm"]
        yield prefix + "post_attention_layernorm.weight", layer["mlp_norm"]
        for ours, theirs in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj")):
            yield f"{prefix}self_attn.{theirs}.weight", layer[ours].reshape(d, -1).T
        yield prefix + "self_attn.o_proj.weight", layer["wo"].reshape(-1, d).T
        for ours, theirs in (("w_gate", "gate_proj"), ("w_up", "up_proj"), ("w_down", "down_proj")):
            yield f"{prefix}mlp.{theirs}.weight", layer[ours].T


def torch_model(config: LlamaConfig, params: Params) -> transformers.PreTrainedModel:
    """The same weights in transformers' model; `padding_idx` is unset, because it would drop that token's gradient."""
    hf = transformers.AutoConfig.for_model(**config.to_hf())
    hf._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(hf, dtype=torch.float32)
    state = {name: torch.from_numpy(array.copy()) for name, array in to_hf_arrays(config, params)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    model.model.embed_tokens.padding_idx = None
    return model.eval()


def torch_logits(model: transformers.PreTrainedModel, tokens, mask=None, positions=None) -> np.ndarray:
    """Logits [B,T,V] of tokens [B,T]; mask 1 = real token."""
    convert = lambda x: None if x is None else torch.from_numpy(np.array(x, np.int64))  # noqa: E731
    with torch.no_grad():
        out = model(input_ids=convert(tokens), attention_mask=convert(mask), position_ids=convert(positions), use_cache=False)
    return out.logits.numpy()
