"""Log-probabilities of what the strategist said, and the one loss that is made of them.

The output head is the widest thing in the model: [B,T,V] logits of one batch can outweigh all its parameters. So the head runs over chunks
of time under `jax.checkpoint` (each chunk's logits live only while it is worked on, forward and backward), and only over positions whose
token the strategist sampled; what it merely read costs no head at all.

Shapes: B rows, T time, S stretches of a row, C chunk, D model, V vocabulary. Logits and everything after them are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epo_jax.batch import BranchedBatch, ComparedBatch, TrajectoryBatch, forks_of
from epo_jax.learn import divergence
from epo_jax.learn.divergence import MAX_LOG_RATIO, TOLD_LOG_RATIO
from epo_jax.mesh import constrain
from epo_jax.model import llama
from epo_jax.model.attention import TRUNK
from epo_jax.model.config import LlamaConfig
from epo_jax.model.stretches import stretches

Metrics = dict[str, jax.Array]
Loss = Callable[[TrajectoryBatch, jax.Array, jax.Array], jax.Array]  # (batch [B,T], log-probabilities, entropies) -> scalar, summed over rows
UNKNOWN_ABOVE = 0.5  # between 0, the largest log-probability, and batch.UNKNOWN_LOGPROB


def token_logprobs(
    params: Any,
    config: LlamaConfig,
    batch: TrajectoryBatch,
    *,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log π(tokens[t] | tokens before t) and the entropy of that distribution, float32 [B,T] each, for a batch [B,T].

    Zero at every position that the strategist did not sample (turn_ids 0). `chunk`: positions of a row (where the mesh splits rows: of a
    stretch) in one piece of the head; None chooses by `chunk_for`.
    """
    chunk = chunk or chunk_for(batch.tokens.shape[0], config.vocab_size, mesh)
    hidden = llama.hidden_states(
        params, config, batch.tokens, batch.positions, batch.segment_ids,
        forks=forks_of(batch), compute_dtype=compute_dtype, remat=remat, mesh=mesh,
    )
    # On a mesh each chunk gathers the head anew and sends its gradient back to the shards, where it is summed over chunks in float32: gathered
    # once, outside, each device would keep the whole head and its whole float32 gradient (3 GiB for Llama-3-8B) for as long as chunks last.
    name = "embed" if config.tie_embeddings else "head"
    # What a state predicts is shifted to the state's own place: the last state of a stretch then has it at hand, wherever the next token lies.
    split = stretches(mesh, batch.tokens.shape[1])
    targets, wanted = (split.apart(split.spread(following(x))) for x in (batch.tokens, said(batch)))
    states = split.apart(hidden)
    if split.ways > 1:
        states = constrain(states, mesh, "batch", "length", "activation", "activation")
    scored = chunked_logprobs(states, lambda head, x: llama.logits(head, config, x, mesh=mesh), {name: params[name]}, targets, wanted, chunk=chunk)
    logprobs, entropies = (preceding(split.collect(split.together(x))) for x in scored)
    return logprobs, entropies


def chunk_for(rows: int, vocabulary: int, mesh: Mesh | None) -> int:
    """Positions of a row in one piece of the head. On CPU a device works on as many tokens at once as have 25 MB of logits, 128 at least and
    512 at most: their logits stay near the caches (with 49 152 words, 128 are as fast as 512 and save 170 MB; 4096 are half as
    fast). Elsewhere on 2048, so that reading the head's weights does not dominate."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    rows_on_a_device = rows if mesh is None else -(-rows // (mesh.shape["data"] * mesh.shape["fsdp"]))
    return chunk_on(device.platform, rows_on_a_device, vocabulary)


def chunk_on(platform: str, rows: int, vocabulary: int) -> int:
    """`chunk_for`, of a device of this platform that has so many rows."""
    tokens = min(512, max(128, 25_000_000 // (4 * vocabulary))) if platform == "cpu" else 2048
    return max(16, tokens // rows)


def said(batch: TrajectoryBatch) -> jax.Array:
    """bool [B,T]: the strategist sampled this token, and something of the same trajectory stands before it."""
    previous = jnp.pad(batch.segment_ids[:, :-1], ((0, 0), (1, 0)))
    return (batch.turn_ids > 0) & (batch.segment_ids > 0) & (batch.segment_ids == previous)


def chosen(batch: TrajectoryBatch | BranchedBatch | ComparedBatch) -> jax.Array:
    """bool [B,T]: `said`, and the policy's own choice: where rows branch, what stands on the trunk is the expert's."""
    forks = forks_of(batch)
    return said(batch) if forks is None else said(batch) & (forks != TRUNK)


def chunked_logprobs(
    hidden: jax.Array,
    project: Callable[[Any, jax.Array], jax.Array],
    head: Any,
    targets: jax.Array,
    wanted: jax.Array,
    *,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy of a target at each state, [B,T], where it is `wanted` and 0 elsewhere, never holding more than [B,C,V] logits.

    hidden [B,T,D]; project(head, [B,C,D]) -> logits [B,C,V] float32; targets int32 and wanted bool [B,T]. There may be other dimensions
    beside B: rows in stretches are [B,S,T/S,...]. In each row the wanted positions are moved together first, so that chunks which no row needs
    are skipped: the work follows the longest row's number of sampled tokens, not T.
    """
    *rows, length = targets.shape
    chunk, place = min(chunk, length), len(rows)
    count = -(-length // chunk)
    order = jnp.argsort(~wanted, axis=-1, stable=True)  # wanted positions first, in their order
    order = jnp.pad(order, (*[(0, 0)] * place, (0, count * chunk - length)))
    needed = jnp.max(jnp.sum(wanted, axis=-1))

    def pieces(x: jax.Array) -> jax.Array:
        """[B, count * C, ...] -> [count, B, C, ...]."""
        return jnp.moveaxis(x.reshape(*rows, count, chunk, *x.shape[place + 1 :]), place, 0)

    states = jnp.take_along_axis(hidden, order[..., None], axis=-2)
    targets = jnp.take_along_axis(targets, order, axis=-1)

    def score(x: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = project(head, x)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # A comparison with every word instead of a gather: it needs no communication when the vocabulary is split over devices.
        hit = jnp.arange(logits.shape[-1], dtype=target.dtype) == target[..., None]
        chosen = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        mean_logit = jnp.sum(jnp.exp(logits - normaliser[..., None]) * logits, axis=-1)
        return chosen - normaliser, normaliser - mean_logit

    def nothing(x: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(target.shape, jnp.float32), jnp.zeros(target.shape, jnp.float32)

    def body(carry: None, piece: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        index, x, target = piece
        return carry, jax.lax.cond(index * chunk < needed, score, nothing, x, target)

    body = jax.checkpoint(body, prevent_cse=False)
    _, scored = jax.lax.scan(body, None, (jnp.arange(count), pieces(states), pieces(targets)))
    moved = jnp.maximum(jnp.cumsum(wanted, axis=-1) - 1, 0)  # where each wanted position was moved to

    def back(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, place).reshape(*rows, count * chunk)
        return jnp.where(wanted, jnp.take_along_axis(x, moved, axis=-1), 0.0)

    return back(scored[0]), back(scored[1])


def following(x: jax.Array) -> jax.Array:
    """[B,T], each entry moved to the place before its own; zero (false) at the last."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def preceding(x: jax.Array) -> jax.Array:
    """[B,T], each entry moved to the place after its own; zero at the first."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))


def reinforce_loss(
    batch: TrajectoryBatch | ComparedBatch,
    logprobs: jax.Array,
    entropies: jax.Array,
    *,
    clip: tuple[float, float] = (0.0, 0.0),
    importance_cap: float = 0.0,
    entropy_weight: float = 0.0,
    kl_weight: float = 0.0,
    kl_kind: str = "k3",
) -> jax.Array:
    """-Σ loss_weights · log π, summed over rows (EPO, section 3); a scalar. All arrays [B,T].

    With loss weights A_t / (T_i k_t) this is the published loss. A round takes several steps on what one policy sampled, and the later ones should
    not push what the earlier ones have pushed already. ρ = π / behaviour says how far learner and sampler are apart; at most one of two corrections
    uses it, at tokens whose behaviour is known:

    clip = (low, high) above 0: PPO's clipped surrogate (Schulman et al. 2017, equation 7; two bounds: Yu et al. 2025, arXiv:2503.14476). log π
    gives way to ρ, and a token has no gradient once its ρ has left [1 - low, 1 + high] on the side that its weight pushes to; where one of the two
    is 0, that side has no bound.

    importance_cap above 0: truncated importance sampling (Ionides 2008; Espeholt et al. 2018, arXiv:1802.01561, ρ̄ of V-trace). Each token's
    gradient is multiplied by min(ρ, cap), which has no gradient itself: unbiased where ρ stays below the cap, of bounded variance always.

    While ρ = 1, as in a round's first step, the gradient of both is that of the published loss. Two optional terms, each the mean over a
    trajectory's own tokens (`chosen`), and summed over trajectories like the loss: minus `entropy_weight` times the entropy, plus `kl_weight` times the
    estimate `kl_kind` (divergence.py says which gradient that gives) of KL(learner ‖ reference), at tokens where the reference is known.
    The reference is that of a `ComparedBatch`, else the behaviour.
    """
    gain = batch.loss_weights * logprobs
    if any(clip):
        known = batch.behavior_logprobs < UNKNOWN_ABOVE
        ratio = _ratio(batch, logprobs)
        low, high = clip
        clipped = jnp.clip(ratio, 1.0 - low if low else None, 1.0 + high if high else None)
        gain = jnp.where(known, jnp.minimum(batch.loss_weights * ratio, batch.loss_weights * clipped), gain)
    elif importance_cap:
        known = batch.behavior_logprobs < UNKNOWN_ABOVE
        gain *= jnp.where(known, jax.lax.stop_gradient(jnp.minimum(_ratio(batch, logprobs), importance_cap)), 1.0)
    loss = -jnp.sum(gain)
    if entropy_weight or kl_weight:
        share = share_of_trajectory(batch)
        if entropy_weight:
            loss -= entropy_weight * jnp.sum(share * entropies)
        if kl_weight:
            reference = batch.reference_logprobs if isinstance(batch, ComparedBatch) else batch.behavior_logprobs
            loss += kl_weight * jnp.sum(share * _divergence(kl_kind, batch, logprobs, reference))
    return loss


def _ratio(batch: TrajectoryBatch, logprobs: jax.Array) -> jax.Array:
    """learner / behaviour probability [B,T], with a log ratio within ±MAX_LOG_RATIO; 1 where the behaviour is not known."""
    log_ratio = jnp.where(batch.behavior_logprobs < UNKNOWN_ABOVE, logprobs - batch.behavior_logprobs, 0.0)
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _divergence(kind: str, batch: TrajectoryBatch, logprobs: jax.Array, reference: jax.Array, limit: float = MAX_LOG_RATIO) -> jax.Array:
    """`divergence.estimate` at the policy's own tokens whose reference is known, else 0. [B,T]."""
    known = chosen(batch) & (reference < UNKNOWN_ABOVE)
    return jnp.where(known, divergence.estimate(kind, logprobs, jnp.where(known, reference, logprobs), limit), 0.0)


def share_of_trajectory(batch: TrajectoryBatch) -> jax.Array:
    """float32 [B,T]: at one of the policy's own tokens one over the number of them in its trajectory (a row may hold several), else 0."""
    here = chosen(batch)
    bins = batch.tokens.shape[1] + 1  # no row holds more segments than tokens
    sampled = jax.vmap(lambda here, ids: jax.ops.segment_sum(here.astype(jnp.float32), ids, num_segments=bins)[ids])(here, batch.segment_ids)
    return jnp.where(here, 1.0 / jnp.maximum(1.0, sampled), 0.0)


def trajectories_in(batch: TrajectoryBatch) -> jax.Array:
    """How many trajectories each row holds: 0 for an empty row. [..., B, T] -> int32 [..., B]."""
    return jnp.max(batch.segment_ids, axis=-1)


def policy_metrics(batch: TrajectoryBatch, logprobs: jax.Array, entropies: jax.Array) -> Metrics:
    """What a person watches, as float32 scalars on the device; arrays [..., T] of any leading shape.

    tokens                   of the policy's own in the batch (`chosen`)
    logprob                  their mean log-probability
    entropy                  mean entropy of the learner at them, in nats
    logprob_gap              mean |learner - behaviour| over tokens whose behaviour is known: 0 but for rounding in the first step
    kl                       k3 estimate of KL(learner ‖ behaviour) over the same tokens; log ratios count up to ±TOLD_LOG_RATIO
    reference_kl             the same of KL(learner ‖ reference) over all of its own tokens; of a `ComparedBatch` only
    ratio_p99                99th percentile of learner / behaviour probability over the same tokens; NaN if there are none
    nonzero_advantage_share  turns with an advantage other than zero over all turns
    """
    batch, logprobs, entropies = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (batch, logprobs, entropies))
    here = chosen(batch)
    tokens = jnp.sum(here)
    known = here & (batch.behavior_logprobs < UNKNOWN_ABOVE)
    log_ratio = jnp.clip(logprobs - batch.behavior_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    starts = here & (batch.turn_ids != jnp.pad(batch.turn_ids[:, :-1], ((0, 0), (1, 0))))
    measured = jnp.maximum(1, jnp.sum(known))
    reference = {}
    if isinstance(batch, ComparedBatch):
        reference["reference_kl"] = jnp.sum(_divergence("k3", batch, logprobs, batch.reference_logprobs, TOLD_LOG_RATIO)) / jnp.maximum(1, tokens)
    return reference | {
        "tokens": tokens.astype(jnp.float32),
        "logprob": jnp.sum(jnp.where(here, logprobs, 0.0)) / jnp.maximum(1, tokens),
        "entropy": jnp.sum(jnp.where(here, entropies, 0.0)) / jnp.maximum(1, tokens),
        "logprob_gap": jnp.sum(jnp.where(known, jnp.abs(logprobs - batch.behavior_logprobs), 0.0)) / measured,
        "kl": jnp.sum(_divergence("k3", batch, logprobs, batch.behavior_logprobs, TOLD_LOG_RATIO)) / measured,
        "ratio_p99": jnp.exp(jnp.nanquantile(jnp.where(known, log_ratio, jnp.nan), 0.99)),
        "nonzero_advantage_share": jnp.sum(starts & (batch.loss_weights != 0.0)) / jnp.maximum(1, jnp.sum(starts)),
    }
