"""Estimates of KL(π ‖ reference) from tokens that π sampled, as terms of a loss (Schulman 2020, "Approximating KL divergence").

With d = log π(a) - log reference(a) at the sampled token a, the value and, differentiated as they stand, the expected gradient while the
tokens come from π itself (Tang and Munos 2025, arXiv:2506.09477):

    kind   value            mean over a ~ π        expected gradient
    k1     d                KL(π ‖ reference)      0: every ∇ log π(a) with the same weight, which is noise and teaches nothing
    k2     d² / 2           not KL, but near it    that of KL(π ‖ reference): Σ π d ∇ log π. The one to use where π is to stay near
    k3     exp(-d) - 1 + d  KL(π ‖ reference)      that of KL(reference ‖ π): it pulls most at what the reference says and π does not

k1 is here because it is the unbiased measure, and because other code has it in its loss; as a loss term choose k2 or k3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

KINDS = ("k1", "k2", "k3")
MAX_LOG_RATIO = 10.0  # keeps exp() of a log ratio finite when two policies have drifted far apart
TOLD_LOG_RATIO = 3.0  # of a figure that people watch: one token of thousands, pushed far down, would be all of its mean in k3


def estimate(kind: str, logprobs: jax.Array, reference: jax.Array, limit: float = MAX_LOG_RATIO) -> jax.Array:
    """The estimate of that kind at every token, of any shape; log ratios are limited to ±limit. k2 and k3 are never negative."""
    log_ratio = jnp.clip(logprobs - reference, -limit, limit)
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * jnp.square(log_ratio)
    if kind == "k3":
        return jnp.exp(-log_ratio) - 1.0 + log_ratio
    raise ValueError(f"there is no KL estimate {kind!r}: choose one of {', '.join(KINDS)}")
