"""What the page draws as curves: the metrics of a run by round and by optimizer step, and where the run was resumed."""

from __future__ import annotations

import bisect
import dataclasses
import datetime
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from epo_jax.errors import UserError
from epo_jax.evaluate.results import LABELS
from epo_jax.evaluation import estimate, main_figure
from epo_jax.report.page.episodes import EpisodesFile

# title, figures and what each line is called (one figure: a line for every environment that has it), how numbers read.
ROUND_CHARTS: tuple[tuple[str, Mapping[str, str] | str, str], ...] = (
    ("Process reward a turn", "process_reward", "number"),
    ("Policy says what the expert does", {"agreement": ""}, "percent"),
    ("Reward of a step, by the discriminator", {"step_reward": ""}, "number"),
    ("Discriminator is right", {"discriminator_right_on_expert": "of the expert's", "discriminator_right_on_policy": "of the policy's"}, "percent"),
    ("Variance explained by the critic", {"critic_explained": ""}, "number"),
    ("Judge agrees with the outcome", "judge_agreement", "percent"),
    ("Turns an episode", "turns", "number"),
    ("Strategy length, tokens", "strategy_tokens", "number"),
    ("Repeated tokens in a strategy", "repeated_token_share", "percent"),
    ("Entropy, nats a token", {"entropy": ""}, "number"),
    ("KL, learner from sampler, nats", {"kl": ""}, "number"),
    ("Sampler–learner log-probability gap", {"logprob_gap": ""}, "tiny"),
    ("Gradient norm", {"grad_norm": ""}, "number"),
    ("Advantages not zero", "advantage_nonzero_share", "percent"),
    ("Actions that name nothing possible", "illegal_action_share", "percent"),
    ("Actions that could not be read", "unread_action_share", "percent"),
    ("Tokens a second", {"play_tokens_per_second": "played", "learn_tokens_per_second": "learned"}, "count"),
    ("Seconds", {"seconds_play": "play", "seconds_inspect": "inspect", "seconds_judge": "judge", "seconds_learn": "learn"}, "count"),
    ("Answered from the cache", {"api_actor_cached_share": "actor", "api_judge_cached_share": "judge"}, "percent"),
    ("Cost so far", {"api_spent_money": ""}, "number"),
)
STEP_CHARTS: tuple[tuple[str, str, str], ...] = (
    ("Loss", "loss", "number"),
    ("Gradient norm", "grad_norm", "number"),
    ("Entropy, nats a token", "entropy", "number"),
    ("Log-probability of a sampled token", "logprob", "number"),
    ("KL, learner from sampler, nats", "kl", "number"),
    ("KL, learner from its reference, nats", "reference_kl", "number"),
    ("99th percentile of the probability ratio", "ratio_p99", "number"),
    ("Sampler–learner log-probability gap", "logprob_gap", "tiny"),
)
DEMONSTRATIONS = "expert, demonstrations"  # whose figures these are, where the strategist played nothing
MOST_POINTS = 2_000  # of a line; more are averaged in runs of equal length, which no screen could tell apart

Line = dict[str, Any]  # {"label", "points": [[x, y], ...] or, with an interval, [[x, y, low, high], ...], "held_out"}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """metrics.jsonl: kind → step → row, where of a step that was taken twice the later row counts; times: (time, kind, step) in order."""

    rows: dict[str, dict[int, dict[str, Any]]]
    times: list[tuple[float, str, int]]

    @classmethod
    def read(cls, path: pathlib.Path, unreadable: list[str]) -> Metrics:
        """Empty where there is no file; of damaged lines `unreadable` gets a sentence each, but for a torn last one."""
        rows: dict[str, dict[int, dict[str, Any]]] = {}
        times = []
        for number, row in read_rows(path, unreadable):
            kind, step, when = row.get("kind"), row.get("step"), row.get("time")
            if not (isinstance(kind, str) and isinstance(step, int) and is_number(when)):
                unreadable.append(f"line {number} of {path} has no kind, step and time: restore or remove it.")
                continue
            rows.setdefault(kind, {})[step] = row
            times.append((float(when), kind, step))
        return cls({kind: dict(sorted(found.items())) for kind, found in rows.items()}, sorted(times))

    def rounds(self, files: Sequence[EpisodesFile]) -> dict[int, dict[str, Any]]:
        """Round (from 1) → its figures: as the run wrote them, and what the episodes tell besides. Passes of recorded data count as rounds."""
        told = {file.round: file.figures for file in files if file.phase == "round"}
        written = self.rows.get("round") or self.rows.get("pass") or {}
        return {
            number: told.get(number, {}) | {name: value for name, value in row.items() if name not in ("kind", "step", "time")}
            for number, row in written.items()
        }


def read_rows(path: pathlib.Path, unreadable: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """(number of the line, JSON object) of a file with one a line; a torn last line is left out.

    Of other lines that are damaged `unreadable` gets a sentence each. Raises `UserError` where the file cannot be read at all.
    """
    if not path.exists():
        return []
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): look at the file's rights.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            unreadable.append(f"line {number} of {path} is no JSON object, and is left out: restore or remove it.")
    return rows


def curves(metrics: Metrics, files: Sequence[EpisodesFile], starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"round": axis, "step": axis, "warm_start": axis}, where an axis is {"charts", "resumes"}; axes without anything to draw are left out."""
    rounds = metrics.rounds(files)
    kinds = {"round": ("round", "pass"), "step": ("step",), "warm_start": ("warm_start",)}
    resumes = {axis: _resumes(metrics, kinds[axis], starts) for axis in kinds}
    found = {
        "round": [*_outcome_charts(rounds, files), *_round_charts(rounds, demonstrated(files))],
        "step": [*_step_charts(metrics.rows.get("step", {})), *_speed_chart(metrics, resumes["step"])],
        "warm_start": _step_charts(metrics.rows.get("warm_start", {})),
    }
    return {axis: {"charts": charts, "resumes": resumes[axis]} for axis, charts in found.items() if charts}


def environments_of(rounds: Mapping[int, Mapping[str, Any]], files: Sequence[EpisodesFile]) -> list[str]:
    """The environments that any round or evaluation played."""
    names = {name.partition("/")[0] for row in (*rounds.values(), *(file.figures for file in files)) for name in row if "/" in name}
    return sorted(names)


def demonstrated(files: Sequence[EpisodesFile]) -> bool:
    """Whether what is learned from is an expert's demonstrations, which say nothing about the strategist."""
    return any(file.demonstrated for file in files if file.phase == "round")


def _outcome_charts(rounds: Mapping[int, Mapping[str, Any]], files: Sequence[EpisodesFile]) -> list[dict[str, Any]]:
    """Success, and the reward or another main figure, a chart for every environment: the rounds' own, and the held-out tasks' with their 95 %
    intervals."""
    charts = []
    played_by = DEMONSTRATIONS if demonstrated(files) else "training tasks"
    for environment in environments_of(rounds, files):
        alike = True
        other = main_figure(environment) if main_figure(environment) != "success" else "reward"
        for title, figure, form in (("success", "success", "percent"), (LABELS[other], other, "number")):
            played = _points(rounds, f"{environment}/{figure}")
            if figure == "goal":  # of a round its tenth is told, as the reward
                played = [[x, 10 * y] for x, y in _points(rounds, f"{environment}/reward")]
            held_out = []
            for file in files:
                values = file.values.get((environment, figure))
                if values:
                    result = estimate(list(values.values()))
                    held_out.append([file.round, result.mean, result.low, result.high])
            if figure == "success":
                success = [point[:2] for point in (*played, *held_out)]
            else:  # where the reward is success itself, it is not told twice
                alike = success == [point[:2] for point in (*played, *held_out)]
            lines = [{"label": played_by, "points": played}, {"label": "held-out tasks", "points": held_out, "held_out": True}]
            lines = [line for line in lines if line["points"]]
            if lines and not (figure == "reward" and alike):
                charts.append({"title": f"{environment}: {title}", "format": form, "lines": lines})
    return charts


def _round_charts(rounds: Mapping[int, Mapping[str, Any]], by_expert: bool) -> list[dict[str, Any]]:
    names = environments_of(rounds, [])
    charts = []
    for title, figures, form in ROUND_CHARTS:
        if isinstance(figures, str):  # a figure of the episodes that are learned from
            mark = f": {DEMONSTRATIONS}" if by_expert else ""
            figures = {f"{name}/{figures}": f"{name}{mark}" for name in names} if len(names) > 1 else {figures: mark.removeprefix(": ")}
        lines = [{"label": label, "points": points} for figure, label in figures.items() if (points := _points(rounds, figure))]
        if lines:
            charts.append({"title": title, "format": form, "lines": lines})
    return charts


def _step_charts(steps: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    charts = []
    for title, figure, form in STEP_CHARTS:
        if points := _points(steps, figure):
            charts.append({"title": title, "format": form, "lines": [{"label": "", "points": _thinned(points)}]})
    return charts


def _speed_chart(metrics: Metrics, resumes: Sequence[float]) -> list[dict[str, Any]]:
    """Tokens that a step read, over the time since the step before it: known where nothing else came between the two."""
    points: dict[int, float] = {}
    for (before, kind_before, step_before), (when, kind, step) in itertools.pairwise(metrics.times):
        follows = kind == kind_before == "step" and step == step_before + 1 and when > before and step - 0.5 not in resumes
        if follows and is_number(tokens := metrics.rows["step"][step].get("read_tokens")):
            points[step] = tokens / (when - before)
    if not points:
        return []
    lines = [{"label": "", "points": _thinned([[step, points[step]] for step in sorted(points)])}]
    return [{"title": "Tokens a second, learning", "format": "count", "lines": lines}]


def _points(rows: Mapping[int, Mapping[str, Any]], figure: str) -> list[list[float]]:
    return [[step, float(row[figure])] for step, row in rows.items() if is_number(row.get(figure))]


def _thinned(points: list[list[float]]) -> list[list[float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [[group[-1][0], math.fsum(y for _, y in group) / len(group)] for group in groups]


def _resumes(metrics: Metrics, kinds: Sequence[str], starts: Sequence[dict[str, Any]]) -> list[float]:
    """Where on the axis each start after the first came: half a step behind the last row that was written before it."""
    mine = [(when, step) for when, kind, step in metrics.times if kind in kinds]
    marks = []
    for start in starts[1:]:
        try:
            began = datetime.datetime.strptime(str(start.get("time")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except ValueError:
            continue  # a start without a time has no place; it is listed with the others
        place = bisect.bisect_left(mine, (began,))
        marks.append((mine[place - 1][1] if place else (mine[0][1] - 1 if mine else 0)) + 0.5)
    return sorted(set(marks))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
