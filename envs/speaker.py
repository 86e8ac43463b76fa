"""How the experts of all environments speak: each decision is worded in a style drawn anew, from precise to vague.

What the styles sound like is each environment's own (its phrases.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

STYLES = ("exact", "plain", "loose", "vague")

# Style weights of the demonstrations that a strategist clones. The vague style has the most weight and one wording, so what a clone says
# likeliest is what helps least: becoming surer of itself makes it worse, and only learning what works makes it better.
MIXED: Mapping[str, float] = {"exact": 0.15, "plain": 0.25, "loose": 0.25, "vague": 0.35}
# Of those whose words are all that there is: an expert that nobody acts for.
PRECISE: Mapping[str, float] = {"exact": 0.5, "plain": 0.5}


class Speaker:
    """Says decisions by `phrase(decision, style, rng)`, in styles drawn with the given weights."""

    def __init__(self, phrase: Callable[[Any, str, random.Random], str], rng: random.Random, weights: Mapping[str, float] = MIXED) -> None:
        self._phrase, self._rng = phrase, rng
        self._styles = [style for style in STYLES if weights.get(style, 0) > 0]
        self._weights = [weights[style] for style in self._styles]

    def say(self, decision: Any) -> str:
        return self._phrase(decision, self._rng.choices(self._styles, self._weights)[0], self._rng)
