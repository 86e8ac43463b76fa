"""The evaluator: what a finished conversation of two was worth to each of them, on SOTOPIA's seven dimensions (Zhou et al. 2024).

An evaluator reads the whole conversation with both private sides and scores both seats at once; the overall score is the plain mean of the
seven. Failure is data, never a score: an evaluator that fails for good masks both seats' trajectories, and nothing of either is counted as zero.

`openai` is a model behind an API (evaluator_openai.py). `epo_jax/partners.py` makes the one that a run names; where a rule scores the outcome
(bargaining games), none is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

# dimension → (lowest, highest) score, in the published order.
DIMENSIONS = {
    "believability": (0, 10),
    "relationship": (-5, 5),
    "knowledge": (0, 10),
    "secret": (-10, 0),
    "social_rules": (-10, 0),
    "financial_and_material_benefits": (-5, 5),
    "goal": (0, 10),
}


class Scores(dict[str, int]):
    """Dimension → one seat's score; `reasons`: dimension → why, in the evaluator's words. Raises `ValueError` for scores that cannot be."""

    def __init__(self, scores: Mapping[str, int], reasons: Mapping[str, str] | None = None) -> None:
        super().__init__({dimension: scores[dimension] for dimension in DIMENSIONS if dimension in scores})
        self.reasons = dict(reasons or {})
        if len(self) < len(DIMENSIONS) or len(scores) > len(DIMENSIONS):
            raise ValueError(f"scores must have exactly the dimensions {', '.join(DIMENSIONS)}")
        for dimension in DIMENSIONS:
            check_score(dimension, self[dimension])


def check_score(dimension: str, score: int) -> None:
    """Raises `ValueError` that says what the score should be, where it is no whole number within the dimension's range."""
    low, high = DIMENSIONS[dimension]
    if not isinstance(score, int) or isinstance(score, bool) or not low <= score <= high:
        raise ValueError(f"{dimension} is {score}: it must be a whole number from {low} to {high}")


def overall(scores: Mapping[str, float]) -> float:
    """The plain mean of the seven dimensions."""
    return sum(scores[dimension] for dimension in DIMENSIONS) / len(DIMENSIONS)


class Evaluator(Protocol):
    """Scores one finished conversation. money: what it has cost since it was made, in the currency of its prices."""

    name: str
    money: float

    async def score(self, transcript: str, names: tuple[str, str]) -> tuple[Scores, Scores]:
        """The scores of each seat. transcript: everything, with both private sides; names: of seat 0 and seat 1, as the transcript has them.

        Raises whatever says why there are none; `UserError` (a spent budget, a wrong key) where no conversation could be scored.
        """
        ...
