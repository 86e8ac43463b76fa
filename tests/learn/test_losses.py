"""The loss against the published reference (8 cases in float64) and against itself without chunks."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.batch import UNKNOWN_LOGPROB, TrajectoryBatch, pad
from epo_jax.learn import losses
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import declare
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=307, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)


def trajectories_from_labels(tokens: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Trajectory]:
    """Rows of the reference as trajectories: a run of labels other than -100 is a turn, in whose order the scores stand."""
    result = []
    for row_tokens, row_labels, row_scores in zip(tokens.tolist(), labels.tolist(), scores.tolist(), strict=True):
        turns: list[Turn] = []
        read: list[int] = []
        inside = False
        for token, label in zip(row_tokens, row_labels, strict=True):
            if label == -100:
                read.append(token)
            else:
                if not inside:
                    turns.append(Turn(prompt_tokens=read, advantage=row_scores[len(turns)]))
                    read = []
                turns[-1].tokens.append(label)
            inside = label != -100
        assert row_scores[len(turns)] == -100.0
        result.append(Trajectory("reference", "case", turns=turns))
    return result


@pytest.mark.parametrize("case", range(8))
def test_published_loss_and_gradient(shared: pathlib.Path, case: int) -> None:
    """Logits stand in for hidden states, with the identity as head, through the batch and the chunks that training uses."""
    reference = np.load(shared / "reference" / "epo_loss.npz")
    logits, tokens, labels, scores, loss, grad = (reference[f"case{case}/{name}"] for name in ("logits", "tokens", "labels", "scores", "loss", "grad"))
    rows, length = tokens.shape
    trajectories = trajectories_from_labels(tokens, labels, scores)
    (batch,), _ = pad(trajectories, length_buckets=(length,), rows=rows, max_length=length, pad_id=0)
    longest_first = sorted(range(rows), key=lambda row: -len(trajectories[row].tokens))  # as a batch has them
    logits, grad = logits[longest_first], grad[longest_first]
    batch = TrajectoryBatch(*(jnp.asarray(array[0]) for array in batch))

    def published(logits: jax.Array) -> jax.Array:
        next_tokens, wanted = losses.following(batch.tokens), losses.following(losses.said(batch))
        scored = losses.chunked_logprobs(logits, lambda _, x: x, (), next_tokens, wanted, chunk=7)
        return losses.reinforce_loss(batch, *map(losses.preceding, scored))

    ours, our_grad = jax.jit(jax.value_and_grad(published))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(ours, loss, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(our_grad, grad, atol=1e-5)
    assert np.abs(grad).max() > 1e-2  # the bound means something


# --- a small model and a batch for it ---------------------------------------------------------------------------------------------------------


def make_batch(rows: int, length: int, seed: int = 0, turns: int = 3) -> TrajectoryBatch:
    """Random trajectories of different lengths, [rows, length]."""
    random = np.random.default_rng(seed)
    trajectories = []
    for _ in range(rows):
        said = []
        for _ in range(turns):
            count = int(random.integers(1, length // (3 * turns)))
            said.append(
                Turn(
                    prompt_tokens=random.integers(0, CONFIG.vocab_size, int(random.integers(1, length // (2 * turns)))).tolist(),
                    tokens=random.integers(0, CONFIG.vocab_size, count).tolist(),
                    logprobs=(-5.0 - random.random(count)).tolist(),
                    advantage=float(random.normal()),
                )
            )
        trajectories.append(Trajectory("test", "task", turns=said))
    (batch,), _ = pad(trajectories, length_buckets=(length,), rows=rows, max_length=length, pad_id=0)
    return TrajectoryBatch(*(jnp.asarray(array[0]) for array in batch))


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def model(request: pytest.FixtureRequest) -> tuple[LlamaConfig, llama.Params]:
    config = dataclasses.replace(CONFIG, tie_embeddings=request.param)
    random = np.random.default_rng(0)  # numpy: jax.random would take seconds to compile
    initial = lambda weight: jnp.asarray((weight.std or 1.0) * random.normal(size=weight.shape), jnp.float32)  # noqa: E731
    return config, jax.tree.map(initial, declare(config))


def unchunked(params: llama.Params, config: LlamaConfig, batch: TrajectoryBatch) -> tuple[jax.Array, jax.Array]:
    """The same by the plainest means: all logits at once, and a gather."""
    hidden = llama.hidden_states(params, config, batch.tokens, batch.positions, batch.segment_ids)
    every = jax.nn.log_softmax(llama.logits(params, config, hidden)[:, :-1])
    chosen = jnp.take_along_axis(every, batch.tokens[:, 1:, None], axis=2)[..., 0]
    entropy = -jnp.sum(jnp.exp(every) * every, axis=-1)
    return tuple(jnp.where(batch.turn_ids > 0, jnp.pad(x, ((0, 0), (1, 0))), 0.0) for x in (chosen, entropy))


def test_chunked_equals_unchunked(model) -> None:
    """A chunk that does not divide T, and one that is longer."""
    config, params = model
    batch = make_batch(3, 48)

    def objective(score):
        def value(params):
            logprobs, entropies = score(params)
            return losses.reinforce_loss(batch, logprobs, entropies, entropy_weight=0.1, kl_weight=0.2), (logprobs, entropies)

        return jax.jit(jax.value_and_grad(value, has_aux=True))(params)

    (expected_value, expected), expected_gradient = objective(lambda params: unchunked(params, config, batch))
    for chunk in (5, 1000):
        (value, scored), gradient = objective(lambda params: losses.token_logprobs(params, config, batch, chunk=chunk))
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5), scored, expected)
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4), gradient, expected_gradient)


def widest_vocabulary_buffer(compiled_text: str, vocabulary: int) -> int:
    """Elements of the largest array in the program that has a vocabulary dimension."""
    shapes = (tuple(map(int, found.split(","))) for found in re.findall(r"(?:f32|bf16|pred|s32)\[(\d+(?:,\d+)*)\]", compiled_text))
    return max((int(np.prod(shape)) for shape in shapes if vocabulary in shape), default=0)


def test_no_array_of_the_size_of_all_logits(model) -> None:
    config, params = model
    rows, length, chunk = 4, 64, 8
    batch = make_batch(rows, length)

    def compiled(chunk: int) -> str:
        def value(params):
            return losses.reinforce_loss(batch, *losses.token_logprobs(params, config, batch, chunk=chunk), entropy_weight=0.1)

        return jax.jit(jax.value_and_grad(value)).lower(params).compile().as_text()

    of_a_chunk = rows * chunk * config.vocab_size
    table = config.vocab_size * config.hidden_size
    assert widest_vocabulary_buffer(compiled(chunk), config.vocab_size) <= max(of_a_chunk, table)
    assert widest_vocabulary_buffer(compiled(length), config.vocab_size) >= rows * length * config.vocab_size  # the measure sees them


def test_work_follows_the_sampled_tokens(model) -> None:
    """Chunks that no row needs are not computed: `project` runs for ceil(longest / chunk) of them."""
    ran: list[int] = []

    def project(head: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return x @ head

    wanted = np.zeros((2, 40), bool)
    wanted[0, [3, 9, 11, 39]] = True
    wanted[1, 20:29] = True
    tokens = jnp.ones((2, 40), jnp.int32)
    logprobs, _ = losses.chunked_logprobs(jnp.ones((2, 40, 3)), project, jnp.eye(3), tokens, jnp.asarray(wanted), chunk=4)
    jax.effects_barrier()
    assert len(ran) == 3  # 9 wanted positions in the longer row, 4 a chunk
    np.testing.assert_allclose(logprobs, np.where(wanted, -np.log(3), 0.0), rtol=1e-6)


def test_packed_trajectories_score_as_if_alone(model) -> None:
    """Two trajectories in one row: the first token of the second is predicted by nothing, and the rest by its own past."""
    config, params = model
    alone = make_batch(2, 32)
    lengths = np.asarray((alone.segment_ids > 0).sum(axis=1))
    packed = TrajectoryBatch(
        *(
            jnp.concatenate([array[0, : lengths[0]], array[1, : lengths[1]] + (name == "segment_ids")])[None]
            for name, array in alone._asdict().items()
        )
    )
    one, _ = losses.token_logprobs(params, config, alone, chunk=8)
    two, _ = losses.token_logprobs(params, config, packed, chunk=8)
    np.testing.assert_allclose(two[0], np.concatenate([one[0, : lengths[0]], one[1, : lengths[1]]]), atol=1e-5)
    assert losses.trajectories_in(packed).tolist() == [2]
    np.testing.assert_allclose(losses.reinforce_loss(packed, two, two), losses.reinforce_loss(alone, one, one), rtol=1e-5)


def test_first_token_of_a_trajectory_is_never_scored() -> None:
    batch = make_batch(1, 32)
    batch = batch._replace(turn_ids=jnp.ones_like(batch.turn_ids))
    assert losses.said(batch)[0].tolist() == [False] + (batch.segment_ids[0, 1:] > 0).tolist()


# --- the optional terms and the metrics, by hand ------------------------------------------------------------------------------------------------


def by_hand() -> tuple[TrajectoryBatch, jax.Array, jax.Array]:
    """One row: tokens read, said, said, read, said (behaviour unknown), padding; then an empty row."""
    def row(values: list[float], kind: type) -> jax.Array:
        return jnp.asarray([values, [0] * 6], kind)

    batch = TrajectoryBatch(
        tokens=row([1, 2, 3, 4, 5, 0], jnp.int32),
        positions=row([0, 1, 2, 3, 4, 0], jnp.int32),
        segment_ids=row([1, 1, 1, 1, 1, 0], jnp.int32),
        loss_weights=row([0, 0.25, 0.25, 0, 0, 0], jnp.float32),
        behavior_logprobs=row([0, -1.0, -2.0, 0, UNKNOWN_LOGPROB, 0], jnp.float32),
        turn_ids=row([0, 1, 1, 0, 2, 0], jnp.int32),
    )
    return batch, row([0, -1.5, -2.0, 0, -3.0, 0], jnp.float32), row([0, 1.0, 2.0, 0, 6.0, 0], jnp.float32)


def test_loss_terms_by_hand() -> None:
    batch, logprobs, entropies = by_hand()
    np.testing.assert_allclose(losses.reinforce_loss(batch, logprobs, entropies), 0.25 * 3.5)
    np.testing.assert_allclose(losses.reinforce_loss(batch, logprobs, entropies, entropy_weight=0.1), 0.25 * 3.5 - 0.1 * 3.0, rtol=1e-6)
    k3 = np.exp(0.5) - 1.0 - 0.5
    np.testing.assert_allclose(losses.reinforce_loss(batch, logprobs, entropies, kl_weight=2.0), 0.25 * 3.5 + 2.0 * k3 / 3, rtol=1e-6)


def test_clipped_surrogate_by_hand() -> None:
    """Ratios exp(0.5) and exp(-0.5), each once with a weight that pushes it further out (clipped: no gradient) and once back in."""
    batch, logprobs, entropies = by_hand()
    batch = batch._replace(behavior_logprobs=batch.behavior_logprobs.at[0, 1:3].set(jnp.asarray([-2.0, -1.5])), loss_weights=batch.loss_weights.at[0, 4].set(0.5))
    up, down = np.exp(0.5), np.exp(-0.5)
    for first, second, value, gradient in (
        (0.25, 0.25, 1.3 * 0.25 + down * 0.25, [0.0, down * 0.25]),
        (-0.25, -0.25, -up * 0.25 - 0.8 * 0.25, [-up * 0.25, 0.0]),
    ):
        weighted = batch._replace(loss_weights=batch.loss_weights.at[0, 1:3].set(jnp.asarray([first, second])))
        found = jax.value_and_grad(lambda lp, w=weighted: -losses.reinforce_loss(w, lp, entropies, clip=(0.2, 0.3)))(logprobs)
        np.testing.assert_allclose(found[0], value - 0.5 * 3.0, rtol=1e-6)  # the last token's behaviour is not known: log π
        np.testing.assert_allclose(found[1][0], [0, *gradient, 0, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize("clip", [(0.2, 0.0), (0.0, 0.3)])
def test_a_side_without_a_clip_has_no_bound(clip: tuple[float, float]) -> None:
    """min(w ρ, w ρ') with ρ' bounded on one side alone: at ρ = 1 and wherever the other side is left, the gradient is that of w ρ."""
    low, high = 1 - clip[0] if clip[0] else 0.0, 1 + clip[1] if clip[1] else np.inf
    for log_ratio in (-1.0, -0.1, 0.0, 0.1, 1.0):
        for weight in (1.0, -1.0):
            batch, logprobs, entropies = by_hand()
            batch = batch._replace(loss_weights=batch.loss_weights.at[0, 1].set(weight))
            logprobs = logprobs.at[0, 1].set(batch.behavior_logprobs[0, 1] + log_ratio)
            gradient = jax.grad(lambda lp, b=batch: losses.reinforce_loss(b, lp, entropies, clip=clip))(logprobs)[0, 1]
            ratio = np.exp(log_ratio)
            free = (ratio < high) if weight > 0 else (ratio > low)
            np.testing.assert_allclose(gradient, -weight * ratio * free, rtol=1e-5)


def test_clipping_leaves_the_first_step_of_a_round_as_it_is() -> None:
    batch, logprobs, entropies = by_hand()
    batch = batch._replace(behavior_logprobs=jnp.where(batch.turn_ids > 0, logprobs, 0.0))
    plain, clipped = (jax.grad(lambda lp, c=clip: losses.reinforce_loss(batch, lp, entropies, clip=c))(logprobs) for clip in ((0.0, 0.0), (0.2, 0.2)))
    np.testing.assert_allclose(clipped, plain, rtol=1e-6)


def test_chunks_keep_a_device_busy_within_some_megabytes_of_logits() -> None:
    assert [losses.chunk_for(rows, 4096, None) for rows in (1, 4, 8, 1000)] == [512, 128, 64, 16]
    assert [losses.chunk_for(4, vocabulary, None) for vocabulary in (4096, 20_000, 49_152, 128_256)] == [128, 78, 32, 32]
    assert losses.chunk_for(8, 4096, make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])) == 256


def test_metrics_by_hand() -> None:
    batch, logprobs, entropies = by_hand()
    found = jax.jit(losses.policy_metrics)(*jax.tree.map(lambda x: x[None], (batch, logprobs, entropies)))
    expected = {
        "tokens": 3.0,
        "logprob": -6.5 / 3,
        "entropy": 3.0,
        "logprob_gap": 0.25,
        "kl": (np.exp(0.5) - 1.5) / 2,
        "ratio_p99": np.exp(np.quantile([-0.5, 0.0], 0.99)),
        "nonzero_advantage_share": 0.5,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_tokens_pushed_far_down_are_told_up_to_a_limit() -> None:
    """Else one of them, at exp(10), would be all of the mean of thousands, and the run page would warn of every healthy run."""
    batch, logprobs, entropies = by_hand()
    np.testing.assert_allclose(losses.policy_metrics(batch, logprobs - 8.0, entropies)["kl"], np.exp(3.0) - 4.0, rtol=1e-5)


def test_kl_pulls_towards_the_behaviour() -> None:
    batch, logprobs, entropies = by_hand()
    gradient = jax.grad(lambda lp: losses.reinforce_loss(batch, lp, entropies, kl_weight=1.0) - losses.reinforce_loss(batch, lp, entropies))(logprobs)
    assert gradient[0, 1] < 0  # the learner thinks less of this token than the sampler did: descent raises it
    np.testing.assert_allclose(gradient[0, 2:], 0.0, atol=1e-7)
