"""A strategist learns to advise one side of a negotiation in SOTOPIA: rounds of play, judgement and learning, and the best round is kept.

    python -m epo_jax.train --config=configs/sotopia.py                                   a small strategist on the embedded bargaining games
    python -m epo_jax.train --config=configs/sotopia.py --config.credit.permute=True      the control: nothing to learn from
    python -m epo_jax.train --config=configs/sotopia.py:self_play                         against itself and its earlier rounds as well
    python -m epo_jax.evaluate --config=configs/sotopia.py:compare                        none, react, vanilla and trained in one table
    python -m epo_jax.train --config=configs/sotopia.py:gpt                               the paper's setting, with models behind OPENAI_BASE_URL

Nothing is downloaded and no key is needed. A model of 0.9 million parameters is made from nothing and first clones the expert, whose
strategies are worded from "offer price $86" to "do what seems right" (envs/sotopia/phrases.py); after that it learns from the goal scores of
its own games against scripted partners of several tempers. 200 held-out games are played before the first round and after every second one:
`curve.png` in the run's folder shows their goal score by round with its 95 % interval (the paper's Fig. 3), and `strategist/` holds the best round.

The clone of 1,920 demonstrations starts at a goal of 3.50 [3.11, 3.89] of 10 and 31 % of the games won (goal 5 or more; 200 seats of 179
games); the expert's precise words reach 5.7. Seed 0, eight rounds: the best round has 3.71 [3.31, 4.10] and 36 %, paired +0.2 [-0.2, +0.6] and
+5.3 points [-1.7, +12.3]: a rise that this many games cannot tell from chance. In the same games the actor alone has 2.78, and a rule of thumb
("react": give way slowly, accept at the end) 4.84, so there is more to learn than is learned in this time. Warm start 3.5 minutes, rounds and
evaluations 5 minutes, on one core of a busy machine. Who sits at the other seat is --config.self_play.opponents.KIND=WEIGHT (self, scripted,
untrained, earlier, none, react).

Why not the shipped mini strategist: it has read households and shops only. Its tokenizer needs 2.8 tokens for a word of these games and 385 for an
episode, one made from them 1.5 and 215; and this model reads about twice as many tokens a second.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.defaults import get_defaults


def get_config(preset: str = "mini") -> ConfigDict:
    """The configuration of a preset: mini, self_play, compare or gpt."""
    presets = {"mini": mini, "self_play": self_play, "compare": compare, "gpt": gpt}
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
    config.warm_start.episodes = 1920
    config.warm_start.learning_rate = 3e-3
    config.warm_start.rows = 8
    config.warm_start.accumulation = 1
    config.rounds = 8
    config.rollout.episodes = 384
    config.rollout.group_size = 8  # games differ much more than what eight conversations of one game come to
    config.judge = "verifier"  # how far one has come is mostly the partner's doing: the outcome alone tells of the words
    config.credit.estimator = "grpo"
    config.rollout.max_context = 512
    config.rollout.max_strategy_tokens = 20
    config.rollout.decode_chunk = 8
    config.learn.learning_rate = 7e-4
    config.learn.rows = 8
    config.learn.accumulation = 3
    config.learn.clip_low = 0.2
    config.learn.clip_high = 0.2
    config.learn.max_length = 512
    config.learn.length_buckets = (256, 384, 512)
    config.learn.schedule = "constant"
    config.evaluate.tasks = 200
    config.evaluate.every = 2
    config.checkpoint.keep_best = 1


def self_play(config: ConfigDict) -> None:
    """The embedded games against everybody: half against scripted partners, a quarter against itself (both seats learn) and one against earlier rounds."""
    mini(config)
    config.self_play.opponents.self = 1.0
    config.self_play.opponents.scripted = 2.0
    config.self_play.opponents.earlier = 1.0


def compare(config: ConfigDict) -> None:
    """The paper's four comparisons on the embedded games: the actor alone, thinking first, with the untrained strategist, with the trained one."""
    mini(config)
    config.compare.strategists = ("none", "react", "vanilla", "trained")
    config.compare.checkpoint = "runs/sotopia"


def gpt(config: ConfigDict) -> None:
    """The paper's setting: Llama-3-8B learns by self-play, with a GPT actor, judge and evaluator.

    It needs the weights' folder, SOTOPIA_DATA and a key; what is missing is said at the start. SOTOPIA's training scenarios are not among its
    published files, so it trains on the project's own games, which a rule scores, and is evaluated on the 70 combinations of the 14 hard
    scenarios; --split=all of epo_jax.evaluate takes all 450.
    """
    config.model.source = "weights/Meta-Llama-3-8B-Instruct"  # a Hugging Face folder on this machine
    config.model.compute_dtype = "bfloat16"
    config.environments.sotopia.update(prompt="full", train_split="generated:train", eval_split="hard")
    config.environments.sotopia.options.text = "full"
    config.self_play.opponents.self = 1.0
    config.self_play.opponents.scripted = 0.0
    config.self_play.evaluate = "self"
    config.actor, config.judge, config.evaluator = "openai", "openai", "openai"
    config.actor_api.max_tokens = 256
    config.actor_api.concurrency = 64
    config.rollout.episodes = 256
    config.rollout.temperature = 0.7
    config.rollout.max_strategy_tokens = 32
    config.rollout.max_context = 4096
    config.rollout.slots = 64
    config.credit.estimator = "epo"
    config.learn.epochs = 3
    config.learn.rows = 8
    config.learn.accumulation = 8
    config.learn.max_length = 4096
    config.learn.length_buckets = (1024, 2048, 3072, 4096)
    config.evaluate.tasks = 140
    config.evaluate.temperature = 0.7
    config.checkpoint.keep_best = 1
    config.checkpoint.every_steps = 50
