"""What is measured of a round, and where it is written: `metrics.jsonl`, TensorBoard events and Weights & Biases, under the same names."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from epo_jax.errors import UserError
from epo_jax.report.wandb_run import WandbRun
from epo_jax.rollout.exchange import ASKED_AGAIN, UNREAD
from epo_jax.trajectory import Trajectory, by_environment


def repeated_token_share(tokens: Sequence[int]) -> float:
    """The share of tokens that already stood earlier in the same strategy: near 1 when a policy collapses to one token."""
    return 1.0 - len(set(tokens)) / len(tokens) if tokens else 0.0


def describe(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The figures of a set of episodes. Masked ones are counted and otherwise left out; no episode gives NaN means."""
    scored = [trajectory for trajectory in trajectories if trajectory.masked is None]
    turns = [turn for trajectory in scored for turn in trajectory.turns]
    advantages = [turn.advantage for turn in turns if turn.advantage is not None]
    return {
        "episodes": len(trajectories),
        "masked": len(trajectories) - len(scored),
        "reward": _mean([trajectory.outcome for trajectory in scored]),
        "success": _mean([trajectory.success for trajectory in scored]),
        "bought": _mean([trajectory.extra.get("bought") for trajectory in scored]),
        "progress": _mean([trajectory.turns[-1].progress for trajectory in scored if trajectory.turns]),
        "turns": _mean([len(trajectory.turns) for trajectory in scored]),
        "ended_by_context": _mean([trajectory.end == "context" for trajectory in scored]),
        "strategy_tokens": _mean([len(turn.tokens) for turn in turns]),
        "strategies_cut_off": _mean([turn.stop_reason == "length" for turn in turns]),
        "overlong_strategy_share": _share(scored, "overlong_strategies"),
        "repeated_token_share": _mean([repeated_token_share(turn.tokens) for turn in turns]),
        "distinct_strategies": len({turn.strategy for turn in turns}) / len(turns) if turns else math.nan,
        "illegal_action_share": _share(scored, "illegal_actions"),
        "asked_again_action_share": _share(scored, ASKED_AGAIN),
        "unread_action_share": _share(scored, UNREAD),
        "process_reward": _mean([turn.process_reward for turn in turns]),
        "judge_agreement": judge_agreement(scored),
        "advantage_nonzero_share": _mean([advantage != 0.0 for advantage in advantages]),
        "sampled_logprob": _mean([value for turn in turns for value in turn.logprobs]),
    }


def judge_agreement(trajectories: Sequence[Trajectory]) -> float:
    """How often the judge's process reward ranks episodes as their outcome does: 1 always, 0.5 by chance, 0 never.

    Of all pairs of episodes of one environment whose outcomes differ, the share in which the better one has the higher process reward a turn;
    ties count half. Masked episodes and those that no judge scored are left out; NaN where no pair is left.
    """
    agreeing = pairs = 0.0
    for group in by_environment(trajectories).values():
        scored = [trajectory for trajectory in group if trajectory.masked is None]
        scores = [(trajectory.outcome, _mean([turn.process_reward for turn in trajectory.turns])) for trajectory in scored]
        outcomes, rewards = np.array([score for score in scores if not math.isnan(score[1])]).reshape(-1, 2).T
        for outcome, reward in zip(outcomes, rewards, strict=True):
            worse = rewards[outcomes < outcome]
            agreeing += np.sum(worse < reward) + 0.5 * np.sum(worse == reward)
            pairs += len(worse)
    return float(agreeing / pairs) if pairs else math.nan


def describe_each(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`describe` of all, and of every environment's episodes under `<environment>/<figure>`."""
    values = describe(trajectories)
    for environment, group in by_environment(trajectories).items():
        values |= {f"{environment}/{name}": value for name, value in describe(group).items()}
    return values


def _share(scored: Sequence[Trajectory], count: str) -> float:
    """A count that the player keeps in `extra`, as a share of the turns of the trajectories that have it."""
    counted = [trajectory for trajectory in scored if count in trajectory.extra]
    turns = sum(len(trajectory.turns) for trajectory in counted)
    return sum(trajectory.extra[count] for trajectory in counted) / turns if turns else math.nan


def _mean(values: Sequence[float | bool | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


class MetricsWriter:
    """Appends one JSON row a record to `metrics.jsonl`, and the same numbers to TensorBoard and wandb if asked for."""

    @classmethod
    def of_run(cls, config: ConfigDict, folder: pathlib.Path) -> MetricsWriter:
        """As the run's configuration asks. Raises `UserError` where wandb is asked for and refuses."""
        return cls(folder, tensorboard=config.tensorboard, wandb=WandbRun(config, folder) if config.wandb else None)

    def __init__(self, folder: pathlib.Path, *, tensorboard: bool, wandb: WandbRun | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self._cut_torn_line()
        self._wandb = wandb
        self._events: EventsWriter | None = None
        if tensorboard:
            (folder / "tensorboard").mkdir(exist_ok=True)
            # Not tensorboardX's SummaryWriter: its thread and its exit handler fail in public when the disk is full.
            self._events = EventsWriter(str(folder / "tensorboard" / "events"))

    def write(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
        """`kind` is the row's subject (`round`, `step`, `evaluation`); NaN becomes null, so that every reader parses the file.

        Raises `UserError` if the disk refuses.
        """
        row = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        for name, value in values.items():
            row[name] = value if isinstance(value, str) or math.isfinite(value) else None
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + os.linesep)
            if self._events is not None:
                for name, value in values.items():
                    if not isinstance(value, str) and math.isfinite(value):
                        self._events.write_event(Event(wall_time=row["time"], step=step, summary=scalar(f"{kind}/{name}", value)))
                self._events.flush()
        except OSError as error:
            raise UserError(f"cannot write metrics in {self.path.parent}: {error.strerror or error}; make room, the same command continues.") from error
        if self._wandb is not None:
            self._wandb.write(kind, step, values)

    def _cut_torn_line(self) -> None:
        """What a killed process left of a line must not spoil the next one."""
        if self.path.exists() and (content := self.path.read_bytes()) and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()
