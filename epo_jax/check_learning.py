"""What the main command checks of a configuration before it starts: mistakes that would otherwise only show after the first round was played."""

from __future__ import annotations

import functools
import math

from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.batch import check_buckets
from epo_jax.errors import UserError
from epo_jax.learn import choices, critic
from epo_jax.mesh import check_rows
from epo_jax.reward import credit
from epo_jax.reward.group_credit import GROUP_ESTIMATORS


# The least that each of these may be.
COUNTS = {
    "rounds": 0, "rollout.episodes": 1, "rollout.slots": 1, "rollout.max_context": 2, "rollout.max_strategy_tokens": 1, "rollout.decode_chunk": 1,
    "evaluate.tasks": 0, "evaluate.every": 1, "warm_start.episodes": 0, "warm_start.rows": 1, "warm_start.accumulation": 1, "learn.rows": 1, "learn.accumulation": 1,
    "learn.epochs": 1, "checkpoint.keep": 1, "checkpoint.keep_every": 0, "checkpoint.every_steps": 0, "checkpoint.keep_best": 0,
}  # fmt: skip
RATES = ("learn.learning_rate", "warm_start.learning_rate", "critic.learning_rate", "stepagent.discriminator.learning_rate")


def check_numbers(config: ConfigDict) -> None:
    """Raises `UserError` with every number that cannot be, whatever the others are."""
    values = {name: functools.reduce(lambda section, part: section[part], name.split("."), config) for name in (*COUNTS, *RATES)}
    wrong = [f"{name} is {values[name]}: give {least} or more" for name, least in COUNTS.items() if not values[name] >= least]
    wrong += [f"{name} is {values[name]}: give a number that is not negative" for name in RATES if not 0 <= values[name] < math.inf]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}.", tuple(wrong))


def check_learning(config: ConfigDict, mesh: Mesh) -> None:
    """Raises `UserError` with the first field that cannot be, on this mesh or beside the others."""
    check_every_run(config, mesh)
    settings = config.credit
    credit.estimate(settings.estimator, [], **credit.options_of(settings.estimator, settings.to_dict()))
    if settings.estimator == "bc":
        if config.async_rounds:
            raise UserError("credit.estimator bc reads demonstrations and plays nothing that async_rounds could play ahead: set it to 0.")
        if settings.permute:
            raise UserError("credit.estimator bc gives every strategy the advantage 1, which credit.permute cannot move: set it to False.")
        if config.learn.kl_weight and config.learn.kl_reference == "behaviour":
            raise UserError("nobody sampled a demonstration: for credit.estimator bc set learn.kl_reference to start or round, or kl_weight to 0.")
    size, episodes = config.rollout.group_size, config.rollout.episodes
    if size < 1 or episodes % size:
        raise UserError(f"rollout.group_size is {size}: it must divide the {episodes} episodes of a round.")
    if size == 1 and settings.estimator in GROUP_ESTIMATORS:
        raise UserError(f"credit.estimator {settings.estimator} compares episodes of one task: set rollout.group_size to 2 or more.")
    if config.async_rounds not in (0, 1):
        raise UserError(f"async_rounds is {config.async_rounds}: give 0, or 1 to play one round ahead.")
    if config.async_rounds and not (config.learn.clip_low and config.learn.clip_high):
        raise UserError("async_rounds=1 learns from what earlier weights played: set learn.clip_low and learn.clip_high (0.2 is usual).")


def check_every_run(config: ConfigDict, mesh: Mesh) -> None:
    """What self-play and StepAgent have in common. Raises `UserError`."""
    check_numbers(config)
    for name in ("learn", "warm_start") if config.warm_start.episodes else ("learn",):
        check_rows(f"{name}.rows", config[name].rows, mesh)
    if config.learn.overlong != "drop":
        raise UserError("learn.overlong is for recorded conversations (configs/offline.py): an episode that is too long drops whole turns.")
    choices.check(config.learn)
    critic.check(config)
    for name in ("discount", "gae_lambda"):
        if not 0.0 <= config.credit[name] <= 1.0:
            raise UserError(f"credit.{name} is {config.credit[name]}: give a number from 0 to 1.")
    if config.rollout.workers < 0:
        raise UserError(f"rollout.workers is {config.rollout.workers}: give the number of processes that run environments, or 0 for none.")
    check_buckets(config.learn.length_buckets, config.learn.max_length)
