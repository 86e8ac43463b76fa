"""The compiled step: accumulation, donation, meshes, dtypes, and that it moves likelihoods the right way."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.batch import TrajectoryBatch, pack, pad, pass_lengths
from epo_jax.errors import UserError
from epo_jax.learn import losses
from epo_jax.learn.optimizer import Learning, make_optimizer
from epo_jax.learn.step import TrainState, init_state, make_scorer, make_step, state_shardings
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Weight, declare
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
LENGTH = 24


def trajectories_of(advantages: list[float], behavior: float | None = -4.0) -> list[Trajectory]:
    """A trajectory of two turns for each advantage."""
    random = np.random.default_rng(0)
    trajectories = []
    for advantage in advantages:
        turns = []
        for _ in range(2):
            tokens = random.integers(0, CONFIG.vocab_size, int(random.integers(2, 6))).tolist()
            prompt = random.integers(0, CONFIG.vocab_size, int(random.integers(1, 6))).tolist()
            turns.append(Turn(prompt_tokens=prompt, tokens=tokens, logprobs=[] if behavior is None else [behavior] * len(tokens), advantage=advantage))
        trajectories.append(Trajectory("test", "task", turns=turns))
    return trajectories


def batch_of(advantages: list[float], *, rows: int, accumulation: int = 1, behavior: float | None = -4.0) -> TrajectoryBatch:
    """The same trajectories whatever the shape."""
    trajectories = trajectories_of(advantages, behavior)
    (batch,), _ = pad(trajectories, length_buckets=(LENGTH,), rows=rows, max_length=LENGTH, pad_id=0, accumulation=accumulation)
    return batch


@functools.cache
def sgd() -> optax.GradientTransformation:
    """Learning rate 1: parameters move by exactly minus the gradient."""
    return optax.sgd(1.0)


@functools.cache
def parameters(config: LlamaConfig = CONFIG):
    """The same start for every test, on the host, so that no step can delete it. (Numpy: jax.random would take seconds to compile.)"""
    random = np.random.default_rng(1)

    def initial(weight: Weight) -> np.ndarray:
        return np.ones(weight.shape, np.float32) if weight.std is None else (weight.std * random.normal(size=weight.shape)).astype(np.float32)

    return jax.tree.map(initial, declare(config))


def new_state(optimizer: optax.GradientTransformation, mesh=None, config: LlamaConfig = CONFIG) -> TrainState:
    return init_state(jax.device_put(parameters(config)), config, optimizer, mesh)


@functools.cache
def sgd_step(config: LlamaConfig, mesh, options: tuple):
    of_loss = {name: value for name, value in options if name in ("entropy_weight", "kl_weight", "clip")}
    objective = functools.partial(losses.reinforce_loss, **of_loss)
    return make_step(config, sgd(), mesh, objective=objective, **{name: value for name, value in options if name not in of_loss})


def run(batch: TrajectoryBatch, *, mesh=None, config: LlamaConfig = CONFIG, **options):
    """(gradient, metrics) of one step, on the host."""
    step = sgd_step(config, mesh, tuple(options.items()))
    state, metrics = step(new_state(sgd(), mesh, config), batch)
    return jax.tree.map(lambda old, new: old - new, parameters(config), jax.device_get(state.params)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def plain():
    """(gradient, metrics) of ADVANTAGES in one pass of eight rows on one device, in float32."""
    return run(batch_of(ADVANTAGES, rows=8))


ADAM = make_optimizer(Learning(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0), 10)


@pytest.fixture(scope="module")
def adam_step():
    """AdamW on one device; compiled once for batches [1, 8, LENGTH]."""
    return make_step(CONFIG, ADAM)


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: start with XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])


def assert_close(ours, theirs, **tolerance) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


ADVANTAGES = [1.0, -0.5, 0.3, 0.0, 0.7, -1.0, 2.0]


def test_gradient_is_that_of_the_mean_over_real_rows(plain) -> None:
    """Against the plain gradient of the plain formula; 7 trajectories in 8 rows: the empty row counts for nothing."""
    batch = batch_of(ADVANTAGES, rows=8)
    flat = TrajectoryBatch(*(jnp.asarray(array[0]) for array in batch))

    def mean_loss(params):
        hidden = llama.hidden_states(params, CONFIG, flat.tokens, flat.positions, flat.segment_ids)
        logprobs = jax.nn.log_softmax(llama.logits(params, CONFIG, hidden))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, flat.tokens[:, 1:, None], axis=2)[..., 0]
        return -jnp.sum(flat.loss_weights[:, 1:] * chosen) / 7

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(parameters())
    ours, metrics = plain
    assert_close(ours, jax.device_get(gradient), atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert metrics["trajectories"] == 7
    np.testing.assert_allclose(metrics["nonzero_advantage_share"], 6 / 7, rtol=1e-6)


def test_accumulation_equals_one_big_batch(plain) -> None:
    whole, whole_metrics = plain
    parts, metrics = run(batch_of(ADVANTAGES, rows=3, accumulation=3))  # the last pass holds one trajectory and two empty rows
    assert_close(parts, whole, atol=1e-5)
    assert_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)


def test_packing_gives_the_same_step() -> None:
    """Loss, gradient and metrics of a packed step are those of the padded one, with every term of the loss; and its empty passes are not computed."""
    trajectories = trajectories_of(ADVANTAGES)
    for index, trajectory in enumerate(trajectories):
        trajectory.turns[0].logprobs = [-4.2 - 0.05 * index] * len(trajectory.turns[0].tokens)  # some ratios inside the clip range, some outside
    trajectories[2].turns[1].logprobs = []  # and some that nobody knows
    shape = {"rows": 4, "accumulation": 2, "max_length": LENGTH, "pad_id": 0}
    (padded,), _ = pad(trajectories, length_buckets=(LENGTH,), **shape)
    (packed,), _ = pack(trajectories, **shape)
    needed = int(packed.segment_ids.any(axis=(1, 2)).sum())
    assert padded.tokens.shape == (2, 4, LENGTH) and needed < len(packed.tokens) == 8 and packed.segment_ids.max() > 1
    options = {"entropy_weight": 0.1, "kl_weight": 0.3, "clip": (0.2, 0.2)}
    gradient, metrics = run(padded, **options)
    packed.loss_weights[needed:] = np.nan
    ours, our_metrics = run(packed, **options)
    assert_close(ours, gradient, atol=1e-5)
    assert_close(our_metrics, metrics, rtol=1e-5, atol=1e-5)
    assert metrics["trajectories"] == 7 and metrics["grad_norm"] > 0.1


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    """NaN at one token of the batch: parameters, moments and step stay, and the norm says so; the same step without it is taken."""
    batch, optimizer = batch_of([1.0, -1.0], rows=2), optax.adam(1e-3)
    step = make_step(CONFIG, optimizer)
    before = jax.tree.map(np.asarray, new_state(optimizer))
    spoiled = np.where(batch.loss_weights == batch.loss_weights.max(), np.nan, batch.loss_weights)
    after, metrics = step(new_state(optimizer), batch._replace(loss_weights=spoiled))
    assert not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, after), before)
    taken, metrics = step(after, batch)
    assert np.isfinite(metrics["grad_norm"]) and int(taken.step) == 1


def test_remat_changes_nothing(plain) -> None:
    """"full" also adds the layers' gradients in place: here over three passes."""
    assert_close(run(batch_of(ADVANTAGES, rows=3, accumulation=3), remat="full")[0], plain[0], atol=1e-5)
    assert_close(run(batch_of(ADVANTAGES, rows=8), remat="dots")[0], plain[0], atol=1e-5)


def test_old_state_is_donated_and_the_step_counts(adam_step) -> None:
    state = new_state(ADAM)
    old = jax.tree.leaves((state.params, state.opt_state))
    for number in (1, 2, 3):
        state, _ = adam_step(state, batch_of(ADVANTAGES, rows=8))
        assert int(state.step) == number
    assert all(array.is_deleted() for array in old)
    assert not any(array.is_deleted() for array in jax.tree.leaves(state))


def test_traces_are_counted_once_a_shape() -> None:
    step, state = make_step(CONFIG, ADAM), new_state(ADAM)
    for rows, accumulation, expected in ((8, 1, 1), (8, 1, 1), (4, 2, 2)):
        placed = step.put(batch_of(ADVANTAGES, rows=rows, accumulation=accumulation))
        sums = jax.eval_shape(step.begin, state.params, placed.batch)
        step.accumulate.lower(state.params, None, sums, placed.batch, placed.passes[0][0], LENGTH)
        assert step.accumulate.traces == expected


def test_metrics_stay_on_the_device(adam_step) -> None:
    """Once a batch is placed, a step neither sends anything to the device nor waits for anything from it."""
    state, batch = new_state(ADAM), batch_of(ADVANTAGES, rows=8)
    state, _ = adam_step(state, batch)  # compiled
    placed = adam_step.put(batch)
    with jax.transfer_guard("disallow"):
        _, metrics = adam_step(state, placed)
    assert all(isinstance(value, jax.Array) and value.shape == () for value in metrics.values())
    assert {"loss", "grad_norm", "logprob_gap", "ratio_p99", "kl", "entropy", "tokens", "nonzero_advantage_share"} <= set(metrics)


def test_eight_devices_give_what_one_gives(mesh, plain) -> None:
    """data 2 x fsdp 2 x tensor 2: loss, gradient and metrics to 1e-5, here also with accumulation and a chunk that does not divide T."""
    gradient, metrics = run(batch_of(ADVANTAGES, rows=4, accumulation=2), mesh=mesh, chunk=5)
    assert_close(gradient, plain[0], atol=1e-5)
    assert_close(metrics, plain[1], atol=1e-5, rtol=1e-5)


def test_eight_devices_with_a_tied_head_and_the_optional_terms(mesh) -> None:
    batch = batch_of(ADVANTAGES, rows=8)
    options = {"entropy_weight": 0.01, "kl_weight": 0.01, "remat": "full", "config": dataclasses.replace(CONFIG, tie_embeddings=True)}
    one, one_metrics = run(batch, **options)
    eight, eight_metrics = run(batch, mesh=mesh, **options)
    assert_close(eight, one, atol=1e-5)
    assert_close(eight_metrics, one_metrics, atol=1e-5, rtol=1e-5)


def test_training_on_eight_devices_follows_one_and_the_state_stays_in_place(mesh, adam_step) -> None:
    losses_of = []
    on_mesh = make_step(CONFIG, ADAM, mesh)
    for where, step in ((None, adam_step), (mesh, on_mesh)):
        state, values = new_state(ADAM, where), []
        for _ in range(4):
            if where is not None:
                expected = state_shardings(CONFIG, ADAM, mesh)
                assert all(jax.tree.leaves(jax.tree.map(lambda array, s: s.is_equivalent_to(array.sharding, array.ndim), state, expected)))
            state, metrics = step(state, batch_of(ADVANTAGES, rows=8))
            values.append(float(metrics["loss"]))
        losses_of.append(values)
    np.testing.assert_allclose(losses_of[0], losses_of[1], atol=1e-4)
    assert losses_of[0][-1] < losses_of[0][0]
    assert on_mesh.traces == 3  # each program once
    first_moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    for array in (state.params["layers"]["w_gate"], first_moment["layers"]["w_gate"]):
        assert array.addressable_shards[0].data.size == array.size // 4  # over fsdp and tensor


def test_bfloat16_computes_near_float32_on_float32_masters(plain) -> None:
    exact, exact_metrics = plain
    rough, metrics = run(batch_of(ADVANTAGES, rows=8), compute_dtype="bfloat16")
    assert {array.dtype for array in jax.tree.leaves(rough)} == {np.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], exact_metrics["loss"], atol=0.05)
    a, b = (np.concatenate([np.ravel(array) for array in jax.tree.leaves(tree)]) for tree in (rough, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert np.abs(a - b).max() > 1e-6  # it did compute in another precision
    with pytest.raises(UserError, match="bfloat16"):
        make_step(CONFIG, sgd(), compute_dtype="float8")


@pytest.fixture(scope="module")
def score():
    return make_scorer(CONFIG, chunk=4)


@pytest.mark.parametrize(("advantage", "direction"), [(1.0, 1), (-1.0, -1)])
def test_likelihood_follows_the_sign_of_the_advantage(advantage: float, direction: int, adam_step, score) -> None:
    state, batch = new_state(ADAM), batch_of([advantage] * 8, rows=8)
    before = score(state.params, batch).sum()
    for _ in range(5):
        state, metrics = adam_step(state, batch)
    after = score(state.params, batch).sum()
    assert direction * (after - before) > 5.0
    assert metrics["nonzero_advantage_share"] == 1.0


def test_without_advantage_or_trajectories_nothing_moves() -> None:
    for batch in (batch_of([0.0] * 5, rows=8), jax.tree.map(np.zeros_like, batch_of([1.0], rows=8))):
        gradient, metrics = run(batch)
        assert all(not array.any() for array in jax.tree.leaves(gradient))
        assert metrics["loss"] == 0.0 and metrics["grad_norm"] == 0.0


def test_rescoring_reproduces_the_behaviour(score, mesh) -> None:
    """Log-probabilities by the scorer, put in as behaviour: gap 0, ratio 1, KL 0."""
    batch = batch_of(ADVANTAGES, rows=8)
    logprobs = score(jax.device_put(parameters()), batch)
    _, metrics = run(batch._replace(behavior_logprobs=np.asarray(logprobs)))
    np.testing.assert_allclose([metrics["logprob_gap"], metrics["kl"], metrics["ratio_p99"]], [0.0, 0.0, 1.0], atol=1e-5)
    on_mesh = make_scorer(CONFIG, mesh)(new_state(sgd(), mesh).params, batch)
    np.testing.assert_allclose(on_mesh, logprobs, atol=1e-5)
    assert np.asarray(logprobs).min() < -1.0


def test_unknown_behaviour_measures_nothing_and_breaks_nothing(plain) -> None:
    gradient, metrics = run(batch_of(ADVANTAGES, rows=8, behavior=None), kl_weight=0.1)
    assert metrics["kl"] == 0.0 and metrics["logprob_gap"] == 0.0 and np.isnan(metrics["ratio_p99"])
    assert_close(gradient, plain[0], atol=1e-5)  # a KL term to nothing known adds nothing


def test_the_compiled_step_never_holds_all_logits() -> None:
    """Neither [B,T,V] nor anything as large with a vocabulary dimension; logits of one chunk only. (test_losses shows that the measure sees them.)"""
    config = dataclasses.replace(CONFIG, vocab_size=613)
    state = jax.eval_shape(lambda: new_state(ADAM, config=config))
    step = make_step(config, ADAM, chunk=4, objective=functools.partial(losses.reinforce_loss, entropy_weight=0.1))
    batch = batch_of(ADVANTAGES, rows=8)
    sums = jax.eval_shape(step.begin, state.params, batch)
    programs = (
        step.accumulate.lower(state.params, None, sums, batch, jax.ShapeDtypeStruct((), jnp.int32), LENGTH),
        step.finish.lower(state, sums, batch),
    )
    found = re.findall(r"\w\d+\[(\d+(?:,\d+)*)\]", "".join(program.compile().as_text() for program in programs))
    with_vocabulary = [shape for shape in (tuple(map(int, dimensions.split(","))) for dimensions in found) if 613 in shape]
    assert (8, 4, 613) in with_vocabulary
    assert max(int(np.prod(shape)) for shape in with_vocabulary) == 8 * 4 * 613


def test_passes_of_their_own_lengths_give_the_same_step(plain) -> None:
    """Gradient to 1e-6 of its norm, loss and metrics of one long pass; one program for each length that occurs, and what surrounds the passes."""
    batch = batch_of(ADVANTAGES, rows=2, accumulation=4)
    lengths = (8, 12, 13, 16, LENGTH)
    step = make_step(CONFIG, sgd(), lengths=lengths)
    used = pass_lengths(batch, lengths)
    assert len(set(used)) >= 3
    for _ in range(2):
        state, metrics = step(new_state(sgd()), batch)
        assert step.accumulate.traces == len(set(used)) and step.traces == step.accumulate.traces + 2
    gradient = jax.tree.map(lambda old, new: old - new, parameters(), jax.device_get(state.params))
    assert_close(gradient, plain[0], rtol=0, atol=1e-6 * plain[1]["grad_norm"])
    assert_close(jax.device_get(metrics), plain[1], rtol=1e-5, atol=1e-6)


def test_the_gradient_and_the_state_are_worked_on_in_place() -> None:
    """The compiler aliases every array of the sums, and of the state, with the result that takes its place."""
    state, batch, step = jax.eval_shape(lambda: new_state(ADAM)), batch_of(ADVANTAGES, rows=8), make_step(CONFIG, ADAM)
    sums = jax.eval_shape(step.begin, state.params, batch)
    pass_ = step.accumulate.lower(state.params, None, sums, batch, jax.ShapeDtypeStruct((), jnp.int32), LENGTH).compile()
    size = lambda tree: sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(tree))
    assert pass_.memory_analysis().alias_size_in_bytes == size(sums)
    assert step.finish.lower(state, sums, batch).compile().memory_analysis().alias_size_in_bytes == size(state)
