"""The compiled step: accumulation, donation, meshes, dtypes, and that it moves likelihoods the right way."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epo_jax.batch import TrajectoryBatch, pad
from epo_jax.errors import UserError
from epo_jax.learn.optimizer import Learning, make_optimizer
from epo_jax.learn.step import TrainState, init_state, make_scorer, make_step, state_shardings
from epo_jax.mesh import make_mesh
from epo_jax.model import llama
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Weight, declare
from epo_jax.trajectory import Trajectory, Turn

CONFIG = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
LENGTH = 24


def batch_of(advantages: list[float], *, rows: int, accumulation: int = 1, behavior: float | None = -4.0) -> TrajectoryBatch:
    """A trajectory of two turns for each advantage; the same ones whatever the shape."""
    random = np.random.default_rng(0)
    trajectories = []
    for advantage in advantages:
        turns = []
        for _ in range(2):
            tokens = random.integers(0, CONFIG.vocab_size, int(random.integers(2, 6))).tolist()
            prompt = random.integers(0, CONFIG.vocab_size, int(random.integers(1, 6))).tolist()
            turns.append(Turn(prompt_tokens=prompt, tokens=tokens, logprobs=[] if behavior is None else [behavior] * len(tokens), advantage=advantage))
        trajectories.append(Trajectory("test", "task", turns=turns))
    (batch,), _ = pad(trajectories, length_buckets=(LENGTH,), rows=rows, max_length=LENGTH, pad_id=0, accumulation=accumulation)
    return batch


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


def run(batch: TrajectoryBatch, *, mesh=None, config: LlamaConfig = CONFIG, **options):
    """(gradient, metrics) of one step, on the host."""
    step = make_step(config, sgd(), mesh, **options)
    state, metrics = step(new_state(sgd(), mesh, config), batch)
    return jax.tree.map(lambda old, new: old - new, parameters(config), jax.device_get(state.params)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def plain():
    """(gradient, metrics) of ADVANTAGES in one pass of eight rows on one device, in float32."""
    return run(batch_of(ADVANTAGES, rows=8))


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
    for rows, accumulation in ((2, 4), (3, 3)):
        parts, metrics = run(batch_of(ADVANTAGES, rows=rows, accumulation=accumulation))
        assert_close(parts, whole, atol=1e-5)
        assert_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat: str, plain) -> None:
    assert_close(run(batch_of(ADVANTAGES, rows=8), remat=remat)[0], plain[0], atol=1e-5)


def test_old_state_is_donated_and_the_step_counts() -> None:
    optimizer = make_optimizer(Learning(learning_rate=1e-3), 10)
    step = make_step(CONFIG, optimizer)
    state = new_state(optimizer)
    old = jax.tree.leaves((state.params, state.opt_state))
    for number in (1, 2, 3):
        state, _ = step(state, batch_of(ADVANTAGES, rows=8))
        assert int(state.step) == number
    assert all(array.is_deleted() for array in old)
    assert not any(array.is_deleted() for array in jax.tree.leaves(state))
    assert step.traces == 1  # same shapes: one compilation
    step(state, batch_of(ADVANTAGES, rows=2, accumulation=4))
    assert step.traces == 2


def test_metrics_stay_on_the_device() -> None:
    optimizer = make_optimizer(Learning(learning_rate=1e-3), 10)
    step, state, batch = make_step(CONFIG, optimizer), new_state(optimizer), jax.device_put(batch_of(ADVANTAGES, rows=8))
    state, _ = step(state, batch)  # compiled
    with jax.transfer_guard("disallow"):
        _, metrics = step(state, batch)
    assert all(isinstance(value, jax.Array) and value.shape == () for value in metrics.values())
    assert {"loss", "grad_norm", "logprob_gap", "ratio_p99", "kl", "entropy", "tokens", "nonzero_advantage_share"} <= set(metrics)


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_eight_devices_give_what_one_gives(tied: bool) -> None:
    """data 2 x fsdp 2 x tensor 2: loss, gradient and metrics to 1e-5, with the state where the rules say."""
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    batch = batch_of(ADVANTAGES, rows=4, accumulation=2)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    options = {"entropy_weight": 0.01, "kl_weight": 0.01, "chunk": 5, "config": config}
    one, one_metrics = run(batch, **options)
    eight, eight_metrics = run(batch, mesh=mesh, **options)
    assert_close(eight, one, atol=1e-5)
    assert_close(eight_metrics, one_metrics, atol=1e-5, rtol=1e-5)


def test_state_on_a_mesh_lies_as_the_rules_say_before_and_after() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    optimizer = make_optimizer(Learning(learning_rate=1e-3), 10)
    expected = state_shardings(CONFIG, optimizer, mesh)
    state = new_state(optimizer, mesh)
    step = make_step(CONFIG, optimizer, mesh)
    for _ in range(2):
        jax.tree.map(lambda array, sharding: sharding.is_equivalent_to(array.sharding, array.ndim) or pytest.fail(f"{array.sharding} is not {sharding}"), state, expected)
        state, _ = step(state, batch_of(ADVANTAGES, rows=8))
    first_moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    for array in (state.params["layers"]["w_gate"], first_moment["layers"]["w_gate"]):
        assert array.addressable_shards[0].data.size == array.size // 4  # over fsdp and tensor
    assert step.traces == 1


def test_adamw_on_eight_devices_follows_one() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    losses_of = []
    for where in (None, mesh):
        optimizer = make_optimizer(Learning(learning_rate=1e-2, warmup_ratio=0.0), 10)
        state, step = new_state(optimizer, where), make_step(CONFIG, optimizer, where)
        values = []
        for _ in range(4):
            state, metrics = step(state, batch_of(ADVANTAGES, rows=8))
            values.append(float(metrics["loss"]))
        losses_of.append(values)
    np.testing.assert_allclose(losses_of[0], losses_of[1], atol=1e-4)
    assert losses_of[0][-1] < losses_of[0][0]


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


@pytest.mark.parametrize(("advantage", "direction"), [(1.0, 1), (-1.0, -1)])
def test_likelihood_follows_the_sign_of_the_advantage(advantage: float, direction: int) -> None:
    optimizer = make_optimizer(Learning(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0), 5)
    state, step, score = new_state(optimizer), make_step(CONFIG, optimizer), make_scorer(CONFIG)
    batch = batch_of([advantage] * 4, rows=4)
    before = score(state.params, batch).sum()
    for _ in range(5):
        state, metrics = step(state, batch)
    after = score(state.params, batch).sum()
    assert direction * (after - before) > 5.0
    assert metrics["nonzero_advantage_share"] == 1.0


def test_without_advantage_or_trajectories_nothing_moves() -> None:
    for batch in (batch_of([0.0, 0.0], rows=2), jax.tree.map(np.zeros_like, batch_of([1.0], rows=1))):
        gradient, metrics = run(batch)
        assert all(not array.any() for array in jax.tree.leaves(gradient))
        assert metrics["loss"] == 0.0 and metrics["grad_norm"] == 0.0


def test_rescoring_reproduces_the_behaviour() -> None:
    """Log-probabilities by the scorer, put in as behaviour: gap 0, ratio 1, KL 0. Without behaviour: nothing measured, nothing broken."""
    params = parameters()
    batch = batch_of(ADVANTAGES, rows=4, accumulation=2)
    logprobs = make_scorer(CONFIG, chunk=4)(params, batch)
    _, metrics = run(batch._replace(behavior_logprobs=np.asarray(logprobs)))
    np.testing.assert_allclose([metrics["logprob_gap"], metrics["kl"], metrics["ratio_p99"]], [0.0, 0.0, 1.0], atol=1e-5)
    on_mesh = make_scorer(CONFIG, make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]))
    np.testing.assert_allclose(on_mesh(new_state(sgd(), make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])).params, batch), logprobs, atol=1e-5)
    gradient, metrics = run(batch_of(ADVANTAGES, rows=8, behavior=None), kl_weight=0.1)
    assert metrics["kl"] == 0.0 and np.isnan(metrics["ratio_p99"])
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(gradient))


def test_the_compiled_step_never_holds_all_logits() -> None:
    """Neither [B,T,V] nor anything as large with a vocabulary dimension; logits of one chunk only."""
    from tests.learn.test_losses import widest_vocabulary_buffer

    config = dataclasses.replace(CONFIG, vocab_size=613)
    optimizer = make_optimizer(Learning(), 10)
    batch = batch_of(ADVANTAGES, rows=8, accumulation=1)
    arrays = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), (new_state(optimizer, config=config), batch))
    widest = {
        chunk: widest_vocabulary_buffer(make_step(config, optimizer, chunk=chunk, entropy_weight=0.1).lower(*arrays).compile().as_text(), 613)
        for chunk in (4, LENGTH)
    }
    assert widest[4] <= 8 * 4 * 613 < widest[LENGTH] == 8 * LENGTH * 613
