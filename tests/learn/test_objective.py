"""The options of the loss: KL kinds, references, truncated importance weights, normalisation; by hand in float64, and their invariants."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.defaults import get_defaults
from epo_jax.batch import UNKNOWN_LOGPROB, ComparedBatch, TrajectoryBatch, make_batches, pad
from epo_jax.errors import UserError
from epo_jax.learn import choices, divergence, losses
from epo_jax.model.attention import TRUNK
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.strategist import MINI
from epo_jax.trajectory import Trajectory, Turn

# Two trajectories in two rows: [2,8], turns of 2 + 1 and of 3 tokens; what was read in between has no part.
TURNS = np.array([[0, 1, 1, 0, 2, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]])
SEGMENTS = np.array([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
SAID = TURNS > 0
RANDOM = np.random.default_rng(3)
LOGPROBS = np.where(SAID, -RANDOM.uniform(0.2, 3.0, SAID.shape), 0.0)
BEHAVIOUR = np.where(SAID, LOGPROBS + RANDOM.normal(0.0, 0.4, SAID.shape), 0.0)
REFERENCE = np.where(SAID, LOGPROBS + RANDOM.normal(0.0, 0.6, SAID.shape), 0.0)
WEIGHTS = np.where(SAID, RANDOM.normal(0.0, 1.0, SAID.shape), 0.0)


def batch(reference: np.ndarray | None = REFERENCE, behaviour: np.ndarray = BEHAVIOUR) -> TrajectoryBatch | ComparedBatch:
    arrays = {
        "tokens": np.zeros(SAID.shape, np.int32),
        "positions": np.broadcast_to(np.arange(8, dtype=np.int32), SAID.shape),
        "segment_ids": SEGMENTS.astype(np.int32),
        "loss_weights": WEIGHTS.astype(np.float32),
        "behavior_logprobs": behaviour.astype(np.float32),
        "turn_ids": TURNS.astype(np.int32),
    }
    return TrajectoryBatch(**arrays) if reference is None else ComparedBatch(**arrays, reference_logprobs=reference.astype(np.float32))


def value_and_gradient(logprobs: np.ndarray, given: TrajectoryBatch, **options) -> tuple[float, np.ndarray]:
    """The loss and its gradient with respect to the log-probabilities [B,T]."""
    loss = functools.partial(losses.reinforce_loss, **options)
    value, gradient = jax.value_and_grad(lambda x: loss(given, x, jnp.zeros(x.shape)))(jnp.asarray(logprobs, jnp.float32))
    return float(value), np.asarray(gradient)


# --- KL --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", divergence.KINDS)
@pytest.mark.parametrize("against", ["reference", "behaviour"])
def test_a_kl_term_by_hand(kind: str, against: str) -> None:
    """Mean over each trajectory's three tokens, summed over the two; the gradient is that of the formula as it stands."""
    other = REFERENCE if against == "reference" else BEHAVIOUR
    d = np.where(SAID, LOGPROBS - other, 0.0)
    value = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[kind]
    slope = {"k1": np.where(SAID, 1.0, 0.0), "k2": d, "k3": np.where(SAID, 1 - np.exp(-d), 0.0)}[kind]
    given = batch(REFERENCE if against == "reference" else None)
    plain, plain_gradient = value_and_gradient(LOGPROBS, given)
    ours, gradient = value_and_gradient(LOGPROBS, given, kl_weight=0.7, kl_kind=kind)
    np.testing.assert_allclose(ours - plain, 0.7 * value.sum() / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient - plain_gradient, 0.7 * slope / 3, rtol=1e-4, atol=1e-6)


def test_what_each_kind_means_and_teaches_on_average() -> None:
    """Exactly, over all six actions of a softmax: means against KL(π ‖ q), expected gradients against 0, ∇KL(π ‖ q) and ∇KL(q ‖ π)."""
    random = np.random.default_rng(0)
    logits, other = (jnp.asarray(random.normal(size=6), jnp.float32) for _ in range(2))
    log_q = jax.nn.log_softmax(other)

    def kl(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(a) * (a - b))

    def mean(kind: str, logits: jax.Array) -> jax.Array:
        """Tokens come from the policy as it is now; the gradient goes through the estimate alone."""
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * divergence.estimate(kind, log_p, log_q))

    expected = {
        "k1": jnp.zeros(6),
        "k2": jax.grad(lambda x: kl(jax.nn.log_softmax(x), log_q))(logits),
        "k3": jax.grad(lambda x: kl(log_q, jax.nn.log_softmax(x)))(logits),
    }
    exact = kl(jax.nn.log_softmax(logits), log_q)
    for kind in divergence.KINDS:
        np.testing.assert_allclose(jax.grad(functools.partial(mean, kind))(logits), expected[kind], atol=1e-6)
    for kind in ("k1", "k3"):
        np.testing.assert_allclose(mean(kind, logits), exact, rtol=1e-5)
    assert exact > 0.1 and np.abs(expected["k2"]).max() > 0.05


def test_no_estimate_but_k1_is_negative_and_all_are_zero_between_equals() -> None:
    log_p, log_q = -np.random.default_rng(1).uniform(0, 30, (2, 1000))
    for kind in ("k2", "k3"):
        assert (divergence.estimate(kind, log_p, log_q) >= 0).all()
    assert (divergence.estimate("k1", log_p, log_q) < 0).any()
    for kind in divergence.KINDS:
        assert not np.any(divergence.estimate(kind, log_p, log_p))
        assert np.isfinite(divergence.estimate(kind, log_p * 1e3, log_q)).all()


def test_tokens_of_unknown_reference_have_no_kl() -> None:
    unknown = np.where(SAID & (np.arange(8) == 2), UNKNOWN_LOGPROB, REFERENCE)
    _, plain = value_and_gradient(LOGPROBS, batch(unknown))
    _, with_kl = value_and_gradient(LOGPROBS, batch(unknown), kl_weight=1.0, kl_kind="k2")
    assert not (with_kl - plain)[:, 2].any() and (with_kl - plain)[0, 1] != 0.0


def test_where_rows_branch_entropy_and_kl_are_of_the_policys_tokens_alone() -> None:
    """A trunk with the expert's action (2 tokens) and a branch with the policy's (3): cloning the expert changes neither term nor figure."""
    forks, turns = np.array([[TRUNK] * 4 + [1, 1, 1, 1]], np.int32), np.array([[0, 0, 1, 1, 0, 1, 1, 1]], np.int32)
    common = {"tokens": np.zeros((1, 8), np.int32), "positions": np.zeros((1, 8), np.int32), "segment_ids": np.ones((1, 8), np.int32), "forks": forks}
    reference = np.array([[0, 0, -1, -2, 0, -3, -1, -0.5]], np.float32)
    logprobs, entropies = jnp.asarray(reference - 0.4), jnp.arange(8.0)[None]
    found = []
    for cloned in (0.0, 0.25):
        weights = np.array([[0, 0, cloned, cloned, 0, 0.1, 0.1, 0.1]], np.float32)
        numbered = np.where((forks != TRUNK) | (cloned > 0), turns, 0).astype(np.int32)
        behaviour = np.where(forks == TRUNK, UNKNOWN_LOGPROB, reference) * (numbered > 0)
        given = ComparedBatch(**common, loss_weights=weights, behavior_logprobs=behaviour, turn_ids=numbered, reference_logprobs=reference)

        def loss(lp: jax.Array, entropy: jax.Array, given: ComparedBatch = given) -> jax.Array:
            return losses.reinforce_loss(given, lp, entropy, kl_weight=1.0, kl_kind="k2", entropy_weight=0.5)

        by_logprob, by_entropy = jax.grad(loss, argnums=(0, 1))(logprobs, entropies)
        np.testing.assert_allclose(by_logprob[0], -weights[0] + np.array([0, 0, 0, 0, 0, 1, 1, 1]) * -0.4 / 3, atol=1e-6)
        np.testing.assert_allclose(by_entropy[0], np.array([0, 0, 0, 0, 0, 1, 1, 1]) * -0.5 / 3, atol=1e-6)
        found.append(losses.policy_metrics(given, logprobs, entropies))
    assert found[0]["tokens"] == found[1]["tokens"] == 3 and found[0]["entropy"] == found[1]["entropy"] == 6.0
    for name in ("logprob", "kl", "reference_kl", "logprob_gap"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-6)


# --- importance weights ------------------------------------------------------------------------------------------------------------------------


def test_truncated_importance_weights_by_hand() -> None:
    """The gradient is -w min(ρ, cap): a factor at every token, also where ρ is above the cap, and 1 where the behaviour is unknown."""
    behaviour = BEHAVIOUR.copy()
    behaviour[0, 1] = UNKNOWN_LOGPROB
    ratio = np.where(behaviour > 0.5, 1.0, np.exp(LOGPROBS - BEHAVIOUR))
    cap = 1.1
    assert (ratio[SAID] > cap).any() and (ratio[SAID] < cap).any()
    value, gradient = value_and_gradient(LOGPROBS, batch(behaviour=behaviour), importance_cap=cap)
    factor = np.minimum(ratio, cap)
    np.testing.assert_allclose(gradient, np.where(SAID, -WEIGHTS * factor, 0.0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, -(WEIGHTS * factor * LOGPROBS)[SAID].sum(), rtol=1e-4)


def test_a_cap_below_one_scales_only_what_was_sampled() -> None:
    behaviour = np.where(SAID, UNKNOWN_LOGPROB, 0.0)
    behaviour[0, 1] = LOGPROBS[0, 1]
    _, gradient = value_and_gradient(LOGPROBS, batch(behaviour=behaviour), importance_cap=0.5)
    factor = np.where(behaviour > 0.5, 1.0, 0.5)
    np.testing.assert_allclose(gradient, np.where(SAID, -WEIGHTS * factor, 0.0), rtol=1e-5)


def test_importance_weights_make_the_expected_gradient_that_of_the_policy() -> None:
    """Sampled from q, the mean of ρ A ∇log π over all actions is Σ π A ∇log π: unbiased while the cap is not met."""
    random = np.random.default_rng(2)
    logits, log_q = random.normal(size=5), np.log(random.dirichlet(np.full(5, 5.0)))
    advantages = random.normal(size=5)

    def one(action: int) -> np.ndarray:
        def loss(x: jax.Array) -> jax.Array:
            given = TrajectoryBatch(*(np.zeros((1, 2), np.int32), np.array([[0, 1]]), np.array([[1, 1]])), *(
                np.array([[0.0, advantages[action]]], np.float32), np.array([[0.0, log_q[action]]], np.float32), np.array([[0, 1]])
            ))  # fmt: skip
            logprobs = jnp.stack([jnp.zeros(()), jax.nn.log_softmax(x)[action]])[None]
            return losses.reinforce_loss(given, logprobs, jnp.zeros((1, 2)), importance_cap=1e3)

        return np.asarray(jax.grad(loss)(jnp.asarray(logits, jnp.float32)))

    ours = sum(np.exp(log_q[action]) * one(action) for action in range(5))
    exact = jax.grad(lambda x: -jnp.sum(jax.nn.softmax(x) * advantages))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(ours, exact, atol=1e-5)


# --- normalisation -----------------------------------------------------------------------------------------------------------------------------


def two_trajectories() -> list[Trajectory]:
    """Advantages 1 and -2 on turns of 1 and 3 tokens; advantage 3 on one turn of 2 tokens."""
    first = [Turn(prompt_tokens=[1, 2], tokens=[3], advantage=1.0), Turn(prompt_tokens=[4], tokens=[5, 6, 7], advantage=-2.0)]
    return [Trajectory("test", "a", turns=first), Trajectory("test", "b", turns=[Turn(prompt_tokens=[1], tokens=[8, 9], advantage=3.0)])]


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("turn", [1 / 2, -2 / 6, -2 / 6, -2 / 6, 3 / 2, 3 / 2]),
        ("trajectory", [1 / 4, -2 / 4, -2 / 4, -2 / 4, 3 / 2, 3 / 2]),
        ("token", [2 / 6, -4 / 6, -4 / 6, -4 / 6, 6 / 6, 6 / 6]),  # times 2 trajectories, over 6 tokens: the step divides by 2 again
    ],
)
@pytest.mark.parametrize("packing", [False, True])
def test_normalisation_by_hand(normalisation: str, expected: list[float], packing: bool) -> None:
    (made,), _ = make_batches(
        two_trajectories(), packing=packing, length_buckets=(8,), rows=2, max_length=8, pad_id=0, normalisation=normalisation
    )
    np.testing.assert_allclose(made.loss_weights[made.turn_ids > 0], expected, rtol=1e-6)
    assert not made.loss_weights[made.turn_ids == 0].any()


def test_a_dropped_turn_still_counts() -> None:
    for normalisation, weight in (("turn", 1 / 2), ("trajectory", 1 / 4), ("token", 1.0)):
        (made,), counts = pad(two_trajectories()[:1], length_buckets=(4,), rows=1, max_length=4, pad_id=0, normalisation=normalisation)
        assert counts.dropped_turns == 1
        np.testing.assert_allclose(made.loss_weights[made.turn_ids > 0], [weight], rtol=1e-6)


def test_tokens_can_have_advantages_of_their_own() -> None:
    trajectories = two_trajectories()
    trajectories[0].turns[1].token_advantages = [0.5, 0.0, -4.0]
    (made,), _ = pad(trajectories, length_buckets=(8,), rows=2, max_length=8, pad_id=0)
    np.testing.assert_allclose(made.loss_weights[0, 0][made.turn_ids[0, 0] > 0], [1 / 2, 0.5 / 6, 0.0, -4 / 6], rtol=1e-6)
    trajectories[0].turns[1].token_advantages = [0.5]
    with pytest.raises(ValueError, match="3 tokens but 1 advantages"):
        pad(trajectories, length_buckets=(8,), rows=2, max_length=8, pad_id=0)


def test_an_end_of_turn_that_was_not_sampled_is_not_trained_on() -> None:
    """A strategy that was cut off gets its end from the conversation: it is read, like what follows, and has neither weight nor score."""
    conversation = ConversationFormat(Tokenizer.load(MINI))
    opening = conversation.start([{"role": "user", "content": "Your task is to: look."}])
    cut = conversation.begin_reply("go to")
    assert conversation.end_of_turn_id not in cut
    follows = conversation.reply_and_continue(cut, "Nothing happens.")
    assert follows[0] == conversation.end_of_turn_id
    whole = [*conversation.begin_reply("look"), conversation.end_of_turn_id]
    turns = [Turn(prompt_tokens=opening, tokens=cut, advantage=1.0, stop_reason="length"), Turn(prompt_tokens=follows, tokens=whole, advantage=1.0)]
    (made,), _ = pad([Trajectory("test", "a", turns=turns)], length_buckets=(64,), rows=1, max_length=64, pad_id=0)
    ends = made.tokens[0, 0] == conversation.end_of_turn_id
    forced, sampled = len(opening) + len(cut), len(opening) + len(cut) + len(follows) + len(whole) - 1
    assert ends[forced] and ends[sampled]
    weights, scored = made.loss_weights[0, 0], np.asarray(losses.said(jax.tree.map(lambda array: jnp.asarray(array[0]), made)))[0]
    assert weights[forced] == 0.0 and not scored[forced]
    assert weights[sampled] > 0.0 and scored[sampled]


# --- choices -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalisation": "sequence"}, "turn, token, trajectory"),
        ({"kl_kind": "k4"}, "k1, k2, k3"),
        ({"kl_reference": "teacher"}, "behaviour, start, round"),
        ({"kl_reference": "start"}, "learn.kl_weight is 0"),
        ({"clip_low": 0.2, "importance_cap": 2.0}, "same ratio"),
        ({"clip_low": 1.0, "clip_high": 0.2}, "less than 1"),
        ({"importance_cap": -1.0}, "importance_cap is -1.0"),
    ],
)
def test_contradictory_choices_are_one_sentence(changes: dict, words: str) -> None:
    learn = get_defaults().learn
    choices.check(learn)
    learn.update(changes)
    with pytest.raises(UserError, match=words) as refusal:
        choices.check(learn)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_recorded_conversations_have_no_behaviour_to_compare_with() -> None:
    for changes in ({"clip_high": 0.2}, {"importance_cap": 2.0}, {"kl_weight": 0.1}):
        learn = get_defaults().learn
        learn.update(changes)
        with pytest.raises(UserError, match="do not say how likely"):
            choices.check(learn, recorded=True)
    learn.update(kl_reference="start")
    choices.check(learn, recorded=True)
