"""draft"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.defaults import get_defaults


def get_config(preset: str = "mini") -> ConfigDict:
    """The configuration of a preset: mini."""
    presets = {"mini": mini}
    if preset not in presets:
        raise ValueError(f"configs/sotopia.py has no preset {preset!r}: known are {', '.join(presets)}")
    config = get_defaults()
    config.name = "sotopia" if preset == "mini" else f"sotopia_{preset}"
    for name, environment in config.environments.items():
        environment.share = 1.0 if name == "sotopia" else 0.0
    presets[preset](config)
    return config


def mini(config: ConfigDict) -> None:
    """The embedded default."""
    config.model.source = "random"
    config.model.remat = "none"
    config.model.architecture.update(vocab_size=1024, hidden_size=128, intermediate_size=352, head_dim=32)
    config.warm_start.episodes = 4800
    config.warm_start.learning_rate = 2e-3
    config.warm_start.rows = 8
    config.warm_start.accumulation = 1
    config.rounds = 8
    config.rollout.episodes = 192
    config.rollout.max_context = 512
    config.rollout.max_strategy_tokens = 20
    config.rollout.decode_chunk = 8
    config.learn.learning_rate = 4e-4
    config.learn.rows = 8
    config.learn.accumulation = 3
    config.learn.clip_low = 0.2
    config.learn.clip_high = 0.2
    config.learn.max_length = 512
    config.learn.length_buckets = (256, 384, 512)
    config.learn.schedule = "constant"
    config.credit.discount = 0.95
    config.evaluate.tasks = 200
    config.checkpoint.keep_best = True
