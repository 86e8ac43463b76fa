"""The episodes of one file as the page holds them: a row each for the list, and their conversations in compressed blocks.

A block holds so many conversations that they compress well, and so few that one is read at once when somebody opens an episode.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

from epo_jax.batch import turns_that_fit
from epo_jax.errors import UserError
from epo_jax.evaluate.compare import COMPARED
from epo_jax.evaluation import values_of
from epo_jax.report.metrics import describe_each
from epo_jax.report.page.token_texts import TokenTexts
from epo_jax.trajectory import Trajectory, Turn, by_environment, read_jsonl
from epo_jax.untrusted import CUT

# evaluation: held-out tasks; round: what is learned from; inspection: an expert's episodes, and what the policy would have done in them (StepAgent);
# states: of those the policy's actions alone, rewarded and learned from, which nobody played to an end.
PHASES = ("evaluation", "inspection", "states", "round")
BLOCK = 64  # episodes
LONGEST_TEXT = 20_000  # characters of one message that the page holds
# What the list shows, sorts and filters by; `partner` is [strategist, weights, actor] of the other seat, or None.
COLUMNS = (
    "task", "environment", "kind", "seat", "success", "reward", "turns", "end", "masked", "weights", "actor", "judge", "seed",
    "temperature", "partner",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EpisodesFile:
    """name: relative to the run's folder; phase: one of PHASES; round: counted from 1, of an evaluation the number of rounds done before it.

    rows: one list a episode, as COLUMNS says; blocks: compressed JSON lists of BLOCK conversations each; figures: `describe_each`; values:
    (environment, figure) → task → value, of an evaluation; masked: reason → episodes.
    """

    name: str
    phase: str
    round: int
    rows: list[list[Any]]
    blocks: list[bytes]
    figures: dict[str, float]
    values: dict[tuple[str, str], dict[str, float]]
    masked: dict[str, int]

    @property
    def environments(self) -> set[str]:
        return {row[COLUMNS.index("environment")] for row in self.rows}

    @property
    def demonstrated(self) -> bool:
        """Whether an expert played all of them (rollout/demonstrations.py): nothing of them was sampled."""
        return bool(self.rows) and all(row[COLUMNS.index("actor")] == "expert" for row in self.rows)


def read(path: pathlib.Path, phase: str, round: int, token_texts: TokenTexts | None, max_length: int | None) -> EpisodesFile:
    """One file of trajectories. max_length: tokens of an episode that are learned from; `UserError` for a damaged file."""
    trajectories = read_jsonl(path)
    for number, trajectory in enumerate(trajectories, start=1):
        _check(trajectory, f"line {number} of {path}")
    conversations = [_conversation(trajectory, phase, token_texts, max_length) for trajectory in trajectories]
    values: dict[tuple[str, str], dict[str, float]] = {}
    if phase == "evaluation":
        for environment in by_environment(trajectories):
            values |= {(environment, figure): values_of(trajectories, environment, figure) for figure in COMPARED}
    return EpisodesFile(
        name=f"{path.parent.name}/{path.name}",
        phase=phase,
        round=round,
        rows=[_row(trajectory, played=phase != "states") for trajectory in trajectories],
        blocks=[compressed(conversations[start : start + BLOCK]) for start in range(0, len(conversations), BLOCK)],
        figures=describe_each(trajectories),
        values={key: found for key, found in values.items() if found},
        masked=dict(collections.Counter(_why(trajectory.masked) for trajectory in trajectories if trajectory.masked is not None)),
    )


def compressed(value: Any) -> bytes:
    """JSON in zlib's format, which the browser's DecompressionStream calls "deflate"."""
    return zlib.compress(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), 9)


def _row(trajectory: Trajectory, *, played: bool) -> list[Any]:
    partner = trajectory.extra.get("partner")
    return [
        trajectory.task_id,
        trajectory.environment,
        _text(trajectory.extra.get("task_type")),
        trajectory.seat,
        int(trajectory.success) if played else None,
        _number(trajectory.outcome) if played else None,
        len(trajectory.turns),
        trajectory.end,
        _why(trajectory.masked) if trajectory.masked is not None else None,
        trajectory.weights_version,
        trajectory.actor,
        trajectory.judge,
        trajectory.seed,
        _number(trajectory.temperature),
        [_text(partner.get(name)) for name in ("strategist", "weights", "actor")] if isinstance(partner, dict) else None,
    ]


def _conversation(trajectory: Trajectory, phase: str, token_texts: TokenTexts | None, max_length: int | None) -> dict[str, Any]:
    """first: the observation that opens it; turns: see `_turn`, and where an expert's episode was inspected, `instead`: what the policy would have
    said there, and whether that is the `same`; judge: what it wrote; fits: turns that are learned from, if not all; why: the full reason of a mask;
    scenario, ended_by, scores: of an episode of two seats.
    """
    turns = [_turn(turn, token_texts, of_an_expert=phase == "inspection") for turn in trajectory.turns]
    found: dict[str, Any] = {"first": _text(trajectory.first_observation), "turns": turns}
    inspected = trajectory.extra.get("inspected", [])
    for turn, shown, instead in zip(trajectory.turns, turns, inspected, strict=False):  # the context may have ended it early
        same = " ".join(turn.strategy.split()) == " ".join(instead["text"].split())  # as stepagent.inspection compares
        shown["instead"] = _said(instead["tokens"], instead["logprobs"], instead["text"], token_texts) | {"same": int(same)}
    if trajectory.masked is not None:
        found["why"] = _text(trajectory.masked)
    for name in ("scenario", "ended_by"):
        if isinstance(told := trajectory.extra.get(name), str):
            found[name] = _text(told)
    if isinstance(scores := trajectory.extra.get("scores"), dict):
        found["scores"] = ", ".join(f"{_text(name)} {_text(score)}" for name, score in scores.items())
    judge = trajectory.extra.get("judge")
    if isinstance(judge, dict):
        found["judge"] = {
            "reasoning": _text(judge.get("reasoning")),
            **{name: [_text(each) for each in judge[name]] for name in ("grades", "reasons") if isinstance(judge.get(name), list)},
        }
    if max_length is not None and (fits := turns_that_fit(trajectory, max_length)) < len(trajectory.turns):
        found["fits"] = fits
    return found


def _turn(turn: Turn, token_texts: TokenTexts | None, *, of_an_expert: bool) -> dict[str, Any]:
    """`_said`, action, seen (the observation that followed), reward, progress, process (the judge's reward), advantage; cut: the strategy met its
    limit; advantages: one a token, where the estimator tells them apart. An expert's turn has no numbers: it is not learned from as it is."""
    found = _said(turn.tokens, turn.logprobs, turn.strategy, token_texts)
    found |= {"action": _text(turn.action), "seen": _text(turn.observation)}
    if of_an_expert:
        return found
    if turn.token_advantages:
        found["advantages"] = [_number(value) for value in turn.token_advantages]
    numbers = {"reward": turn.reward, "progress": turn.progress, "process": turn.process_reward, "advantage": turn.advantage}
    found |= {name: _number(value) for name, value in numbers.items() if value is not None}
    if turn.stop_reason == "length":
        found["cut"] = 1
    return found


def _said(tokens: Sequence[int], logprobs: Sequence[float], text: str, token_texts: TokenTexts | None) -> dict[str, Any]:
    """said: token ids, or texts of tokens, or else one text; logprobs: in hundredths of a nat, the sign left out."""
    pieces = token_texts.pieces(tokens, text) if token_texts is not None and tokens else None
    found: dict[str, Any] = {"said": _text(text) if pieces is None else pieces}
    if logprobs:
        found["logprobs"] = [-round(100 * value) for value in logprobs]
    return found


def _number(value: float) -> float:
    """Four digits are more than anyone reads, and compress."""
    return float(f"{value:.4g}")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + CUT


def _why(masked: str) -> str:
    """The beginning of a reason, which is enough to count by."""
    return " ".join(masked.split())[:120]


def _check(trajectory: Trajectory, where: str) -> None:
    """Raises `UserError` for what cannot be shown, as a file that was edited may hold."""
    texts = (
        trajectory.environment,
        trajectory.task_id,
        trajectory.seat,
        trajectory.first_observation,
        trajectory.end,
        trajectory.weights_version,
        trajectory.actor,
    )
    numbers = [trajectory.outcome, trajectory.temperature]
    for turn in trajectory.turns:
        texts += (turn.strategy, turn.action, turn.observation)
        numbers += [turn.reward, *(value for value in (turn.progress, turn.process_reward, turn.advantage) if value is not None)]
        numbers += [*turn.logprobs, *turn.token_advantages]
    try:
        for instead in trajectory.extra.get("inspected", []):
            texts += (instead["text"],)
            numbers += [*instead["tokens"], *instead["logprobs"]]
    except (AttributeError, KeyError, TypeError):
        texts += (None,)
    sound = all(isinstance(text, str) for text in texts) and all(isinstance(value, (int, float)) and abs(value) < float("inf") for value in numbers)
    if not sound or not isinstance(trajectory.masked, str | None):
        raise UserError(f"{where} holds a text that is no text, or a number that is no number: remove the line or write the file again.")


def chosen_blocks(files: Sequence[EpisodesFile], budget: int) -> list[set[int]]:
    """Which blocks of each file the page holds: all if they fit into `budget` bytes, else in turn the first of every file, the second, and so on.

    So every round keeps some, and of evaluations the same tasks.
    """
    chosen: list[set[int]] = [set() for _ in files]
    for place in range(max((len(file.blocks) for file in files), default=0)):
        for index in reversed(range(len(files))):  # of what is left for the last ones, the newest files have most
            if place < len(files[index].blocks) and len(files[index].blocks[place]) <= budget:
                budget -= len(files[index].blocks[place])
                chosen[index].add(place)
    return chosen
