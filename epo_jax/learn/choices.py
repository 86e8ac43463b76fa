"""What `config.learn` chooses: the objective, and which choices contradict each other."""

from __future__ import annotations

import functools
import math

from ml_collections import ConfigDict

from epo_jax.batch import NORMALISATIONS
from epo_jax.errors import UserError
from epo_jax.learn import divergence, losses

REFERENCES = ("behaviour", "start", "round")


def objective_of(learn: ConfigDict) -> losses.Loss:
    """`losses.reinforce_loss` with the options that `config.learn` sets."""
    return functools.partial(
        losses.reinforce_loss,
        clip=(learn.clip_low, learn.clip_high),
        importance_cap=learn.importance_cap,
        entropy_weight=learn.entropy_weight,
        kl_weight=learn.kl_weight,
        kl_kind=learn.kl_kind,
    )


def check(learn: ConfigDict, *, recorded: bool = False) -> None:
    """Raises `UserError` for options that are not there, or of which one makes another meaningless.

    recorded: the run learns from conversations whose behaviour log-probabilities nobody knows.
    """
    for name, known in (("normalisation", NORMALISATIONS), ("kl_kind", divergence.KINDS), ("kl_reference", REFERENCES)):
        if learn[name] not in known:
            raise UserError(f"learn.{name} is {learn[name]!r}: choose one of {', '.join(known)}.")
    for name in ("clip_low", "clip_high", "importance_cap", "kl_weight", "entropy_weight"):
        if not (math.isfinite(learn[name]) and learn[name] >= 0):
            raise UserError(f"learn.{name} is {learn[name]}: give 0 (off) or more.")
    if learn.clip_low >= 1:
        raise UserError(f"learn.clip_low is {learn.clip_low}: give less than 1, as no probability ratio is below 0.")
    clips = learn.clip_low > 0 or learn.clip_high > 0
    if clips and learn.importance_cap:
        raise UserError("learn.clip_low/clip_high and learn.importance_cap correct the same ratio: set one of the two to 0.")
    if learn.kl_reference != "behaviour" and not learn.kl_weight:
        raise UserError(f"learn.kl_reference is {learn.kl_reference!r}, but learn.kl_weight is 0: give it a weight, or leave the reference out.")
    if recorded:
        if clips or learn.importance_cap:
            raise UserError("recorded conversations do not say how likely they were: set learn.clip_low, clip_high and importance_cap to 0.")
        if learn.kl_weight and learn.kl_reference == "behaviour":
            raise UserError("recorded conversations do not say how likely they were: set learn.kl_reference to start or round, or kl_weight to 0.")
