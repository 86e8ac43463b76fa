"""Makes the mini strategist's weights from nothing: behaviour cloning of demonstrations in households and in the shop.

    python -m epo_jax.train --config=configs/mini.py
    cp runs/mini/strategist/* epo_jax/model/mini/        # the weights that `configs/alfshop.py` starts from

52,800 episodes, each read once; 63 minutes on 2 cores with other work beside it, 1.7 GB of memory. It ends at 44 % success on held-out
households (128 of them, temperature 1, 20 turns), and at 12 % success and a mean reward of 0.49 on held-out shopping goals (128, 10 turns).
A run that is stopped continues by the same command.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.defaults import get_defaults


def get_config() -> ConfigDict:
    config = get_defaults()
    config.name = "mini"
    config.model.source = "random"
    config.model.remat = "dots"
    for environment in config.environments.values():
        environment.train_split, environment.eval_split = "generated:train", "generated:eval"
    config.environments.alfworld.share = 1.5  # a household is harder than a shop
    config.warm_start.episodes = 52_800
    config.warm_start.learning_rate = 2e-3
    config.learn.length_buckets = (256, 320, 384, 448, 512, 576, 640, 704, 768, 1024)
    config.checkpoint.every_steps = 100
    config.rounds = 0
    config.evaluate.tasks = 128
    return config
