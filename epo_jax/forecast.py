"""What models behind an API will be asked in a run, and what that costs, from real episodes and the prices in the configuration.

An episode of T turns asks the actor T times, and each request repeats the conversation so far. If the first request has f tokens (instruction,
worked example, task, strategy, wish) and each further one g more (the observation, and what was said and done), the prompts of an episode have

    P(T) = T·f + g·T(T - 1)/2

tokens, and its answers T·a. A judge is asked once an episode: j tokens of instruction and task, and i for every turn in JSON. An evaluator is asked
once a conversation: its instruction and twice what the actor of one seat read last. f, g, a, j and i are counted in episodes that the environment's
expert played. How long the answers of judges and evaluators are is not known before, and assumed (JUDGE_ANSWER, …). Answers that must be asked for
again, answers from the cache, and a server's discount for repeated prompts are not in it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import envs
from epo_jax.api.client import BYTES_A_TOKEN
from epo_jax.reward import judge_openai
from epo_jax.rollout.exchange import Exchange
from epo_jax.rollout.prompts import actor_opening
from epo_jax.trajectory import Trajectory

A_MESSAGE = 4  # tokens that a chat template has around a message
JUDGE_ANSWER = 200  # tokens: a few indexes and the reasoning
GRADE_ANSWER = 40  # tokens: a turn's grade and its reason
EVALUATOR_ANSWER = 800  # tokens: seven dimensions with their reasons, for each of two seats
EVALUATOR_INSTRUCTION = 700  # tokens, with both private sides

Count = Callable[[str], int]  # text → tokens


@dataclasses.dataclass(frozen=True)
class Calls:
    """Requests of one role, and the tokens in their prompts and answers."""

    requests: float = 0.0
    prompt: float = 0.0
    answer: float = 0.0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.requests + other.requests, self.prompt + other.prompt, self.answer + other.answer)

    def __mul__(self, episodes: float) -> Calls:
        return Calls(episodes * self.requests, episodes * self.prompt, episodes * self.answer)

    def money(self, settings: Mapping[str, Any]) -> float:
        """At the prices of `config.actor_api` or another such section; 0 where it has none."""
        return (self.prompt * settings["price_per_million_prompt"] + self.answer * settings["price_per_million_completion"]) / 1e6


@dataclasses.dataclass(frozen=True)
class Shape:
    """An environment's f, g, a, j and i of the module's docstring, and how many turns the expert's episodes had, each a mean."""

    first: float
    growth: float
    action: float
    judge_opening: float
    judge_turn: float
    turns: float

    def actor(self, turns: float) -> Calls:
        """One episode of so many turns."""
        return Calls(turns, turns * self.first + self.growth * turns * (turns - 1) / 2, turns * self.action)

    def judge(self, turns: float, kind: str) -> Calls:
        """The judge of that name (openai, graded) on one episode."""
        return Calls(1, self.judge_opening + turns * self.judge_turn, GRADE_ANSWER * turns if kind == "graded" else JUDGE_ANSWER)

    def evaluator(self, turns: float) -> Calls:
        """One conversation of so many turns in each seat."""
        return Calls(1, EVALUATOR_INSTRUCTION + 2 * turns * self.growth, EVALUATOR_ANSWER)


def by_bytes(text: str) -> int:
    """Tokens of a text where no large model's tokenizer is at hand: English has about four bytes a token."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


def shape(environment: str, episodes: Sequence[Trajectory], count: Count, judge: str = "openai") -> Shape:
    """The means over `episodes`, each of at least one turn. judge: whose instruction is counted."""
    each = [dataclasses.astuple(_shape(environment, episode, count, judge)) for episode in episodes]
    return Shape(*(statistics.fmean(values) for values in zip(*each, strict=True)))


def _shape(environment: str, episode: Trajectory, count: Count, judge: str) -> Shape:
    exchange = Exchange(actor_opening(environment, "full"), form=envs.action_format(environment))
    prompts, seen = [], episode.first_observation
    for turn in episode.turns:
        prompts.append(_tokens(exchange.ask(seen, turn.strategy), count))
        exchange.answered(seen, turn.strategy, turn.action)
        seen = turn.observation
    prompts.append(_tokens(exchange.ask(seen, episode.turns[-1].strategy), count))  # as if there were one turn more
    turns = len(episode.turns)
    judged = count(judge_openai.episode_as_json(dataclasses.replace(episode, outcome=episode.outcome or 0.0)))
    task = count(episode.first_observation)
    return Shape(
        first=prompts[0],
        growth=(prompts[-1] - prompts[0]) / turns,
        action=statistics.fmean(count(f"Action: {turn.action}") for turn in episode.turns),
        judge_opening=count(judge_openai.instruction("graded.txt" if judge == "graded" else "picks.txt")) + task,
        judge_turn=(judged - task) / turns,
        turns=turns,
    )


def _tokens(messages: Sequence[Mapping[str, str]], count: Count) -> int:
    return sum(count(message["content"]) + A_MESSAGE for message in messages)
