"""A whole run in a few seconds: the smallest strategist, few and short episodes of both environments."""

from __future__ import annotations

import json
import pathlib

from configs.alfshop import get_config
from epo_jax.interrupt import StopRequest
from epo_jax.train import Run

# The smallest strategist, its rows on all devices.
MODEL = {
    "model.source": "random",
    "model.architecture.hidden_size": 32,
    "model.architecture.intermediate_size": 48,
    "model.architecture.num_layers": 1,
    "model.architecture.num_heads": 2,
    "model.architecture.num_kv_heads": 1,
    "model.architecture.head_dim": 16,
    "mesh.fsdp": 1,
    "mesh.data": -1,
}
TINY = MODEL | {
    "model.architecture.tokenizer_games": 40,
    "environments.alfworld.max_turns": 4,
    "environments.alfworld.train_split": "generated:train",
    "environments.alfworld.eval_split": "generated:eval",
    "environments.alfworld.share": 3.0,
    "environments.webshop.max_turns": 3,
    "environments.webshop.train_split": "generated:train",
    "environments.webshop.eval_split": "generated:eval",
    "rollout.episodes": 16,
    "rollout.slots": 8,
    "rollout.max_context": 512,
    "rollout.max_strategy_tokens": 8,
    "learn.rows": 8,
    "learn.accumulation": 1,
    "learn.learning_rate": 1e-3,
    "learn.entropy_weight": 0.01,  # so that there is a gradient even where nothing was won
    "learn.max_length": 512,
    "learn.length_buckets": (512,),
    "warm_start.episodes": 16,
    "warm_start.rows": 8,
    "warm_start.accumulation": 1,
    "rounds": 2,
    "compilation_cache": "none",
    "evaluate.tasks": 4,
    "evaluate.every": 2,
}


class StopAfter(StopRequest):
    """Asks to stop at the `limit`-th moment at which a run looks."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.looks = limit, 0

    @property
    def requested(self) -> bool:
        self.looks += 1
        return self.looks >= self.limit

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


class StopAtStep(StopRequest):
    """Asks to stop where the learner of `run`, set once there is one, has taken `steps` steps of a round."""

    def __init__(self, round: int, steps: int) -> None:
        super().__init__()
        self.when, self.run = (round, steps), None

    @property
    def requested(self) -> bool:
        return self.run is not None and (self.run.learner.position.round, self.run.learner.position.steps) == self.when

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def metrics(folder: pathlib.Path, kind: str) -> list[dict]:
    """The rows of a kind in what a run measured."""
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def tiny(folder, **changes):
    config = get_config()
    config.workdir = str(folder)
    config.update_from_flattened_dict(TINY | changes)
    return config


def finished(folder, **changes):
    run = Run(tiny(folder, **changes), StopRequest())
    run.everything()
    return run
