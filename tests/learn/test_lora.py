"""LoRA: its gradient against the full one's projection, what it holds, and a run that learns, stops, goes on and is exported with it."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="the exported folder is loaded with torch: pip install torch==2.13.0")
import transformers  # noqa: E402

from configs.defaults import get_defaults  # noqa: E402
from epo_jax import strategist as strategists  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.export import export  # noqa: E402
from epo_jax.interrupt import Stopped, StopRequest  # noqa: E402
from epo_jax.learn.learner import Learner  # noqa: E402
from epo_jax.learn.optimizer import Learning, make_optimizer  # noqa: E402
from epo_jax.learn.step import init_state, make_scorer, make_step  # noqa: E402
from epo_jax.mesh import make_mesh  # noqa: E402
from epo_jax.model import hf_weights, llama, lora  # noqa: E402
from epo_jax.model.lora import Lora  # noqa: E402
from epo_jax.strategist import MINI, Strategist  # noqa: E402
from tests.learn.test_step import ADVANTAGES, CONFIG, assert_close, batch_of, parameters, sgd  # noqa: E402

LORA = Lora(rank=3, alpha=6.0)
BATCH = batch_of(ADVANTAGES, rows=8)


def adapters(lora_: Lora = LORA, *, b: float = 0.05):
    """On the host; B is not zero, so that A has a gradient."""
    start = jax.device_get(lora.init_adapters(CONFIG, lora_, jax.random.key(0)))
    random = np.random.default_rng(5)
    started = {name: array + b * random.normal(size=array.shape).astype(np.float32) * name.endswith("_b") for name, array in start["layers"].items()}
    return {"layers": started}


def gradient(params, mesh=None, **options):
    """What a step of plain descent at rate 1 takes away, and its metrics."""
    step = make_step(CONFIG, sgd(), mesh, **options)
    state, metrics = step(init_state(jax.device_put(params), CONFIG, sgd(), mesh, options.get("lora")), BATCH)
    return jax.tree.map(lambda old, new: old - new, params, jax.device_get(state.params)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def ours():
    return gradient(adapters(), lora=LORA, frozen=jax.device_put(parameters()))


def test_the_gradient_is_the_full_ones_projection(ours) -> None:
    """W' = W + s A B: dA = s dW Bᵀ and dB = s Aᵀ dW, with dW of the whole model at the merged weights."""
    start = adapters()
    merged = jax.device_get(lora.merge(parameters(), start, LORA))
    full, metrics = gradient(merged)
    for name, inputs in lora.INPUTS.items():
        dw, a, b = full["layers"][name], start["layers"][f"{name}_a"], start["layers"][f"{name}_b"]
        layers, rank = a.shape[0], LORA.rank
        rows = int(np.prod(a.shape[1:-1]))
        flat = dw.reshape(layers, rows, -1)
        assert dw.ndim == 1 + inputs + b.ndim - 2
        da = LORA.scale * np.einsum("lio,lro->lir", flat, b.reshape(layers, rank, -1))
        db = LORA.scale * np.einsum("lir,lio->lro", a.reshape(layers, rows, rank), flat)
        np.testing.assert_allclose(ours[0]["layers"][f"{name}_a"], da.reshape(a.shape), atol=2e-5)
        np.testing.assert_allclose(ours[0]["layers"][f"{name}_b"], db.reshape(b.shape), atol=2e-5)
        assert np.abs(da).max() > 1e-3 and np.abs(db).max() > 1e-3
    np.testing.assert_allclose(ours[1]["loss"], metrics["loss"], rtol=1e-5)


def test_new_adapters_change_nothing_and_merged_ones_compute_the_same() -> None:
    flat = [jnp.asarray(array[0]) for array in (BATCH.tokens, BATCH.positions, BATCH.segment_ids)]
    base = parameters()
    compute = jax.jit(lambda params: llama.hidden_states(params, CONFIG, *flat))
    plain = compute(base)
    np.testing.assert_array_equal(compute(lora.attach(base, lora.init_adapters(CONFIG, LORA, jax.random.key(1)), LORA)), plain)
    attached = compute(lora.attach(base, adapters(), LORA))
    np.testing.assert_allclose(attached, compute(lora.merge(base, adapters(), LORA)), atol=1e-5)
    assert np.abs(attached - plain).max() > 0.01


def test_gradient_and_moments_are_of_the_adapters_alone() -> None:
    few = Lora(rank=1, targets=("wq", "w_down"))
    optimizer = make_optimizer(Learning(), 10)
    start = lora.init_adapters(CONFIG, few, jax.random.key(0))
    size = lambda tree: sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(tree))  # noqa: E731
    assert set(start["layers"]) == {"wq_a", "wq_b", "w_down_a", "w_down_b"}
    assert size(start) == 4 * 2 * ((16 + 32) + (24 + 16))  # two layers; wq is 16 x 32, w_down 24 x 16
    state = init_state(start, CONFIG, optimizer, None, few)
    assert 3 * size(start) <= size(state) <= 3 * size(start) + 16  # and counters
    frozen = jax.device_put(parameters())
    step = make_step(CONFIG, optimizer, lora=few, frozen=frozen)
    assert size(jax.eval_shape(step.begin, state.params, BATCH).gradient) == size(start)
    step(state, BATCH)
    assert_close(jax.device_get(frozen), parameters(), rtol=0)  # neither donated nor changed


def test_eight_devices_give_what_one_gives(ours) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    frozen = init_state(jax.device_put(parameters()), CONFIG, optax.sgd(1.0), mesh).params
    many, metrics = gradient(adapters(), mesh, lora=LORA, frozen=frozen)
    assert_close(many, ours[0], atol=1e-5)
    assert_close(metrics, ours[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rank": -1}, "rank is -1"), ({"rank": 2, "alpha": 0.0}, "alpha is 0"), ({"rank": 2, "targets": ("wq", "embed")}, "embed.*choose among wq"), ({"rank": 2, "targets": ()}, "nothing")],
)  # fmt: skip
def test_impossible_adapters_are_told(settings, words) -> None:
    with pytest.raises(UserError, match=words):
        Lora(**settings)
    with pytest.raises(UserError, match="smaller rank"):
        lora.declare(CONFIG, Lora(rank=16))


@pytest.mark.slow
def test_a_run_learns_stops_goes_on_and_is_exported(tmp_path) -> None:
    """The exported folder says in transformers what the learner computes with its adapters."""
    hf_weights.save(tmp_path / "base", CONFIG, parameters(), MINI)
    config = get_defaults()
    config.model.source, config.model.lora.rank = str(tmp_path / "base"), 2
    config.learn.update(learning_rate=0.02, schedule="constant", warmup_ratio=0.0, length_buckets=(24,), max_length=24)
    mesh = make_mesh({}, jax.devices()[:1])

    def learner(stop: StopRequest | None = None) -> Learner:
        _, params = hf_weights.load(tmp_path / "base")
        strategist = Strategist("base", CONFIG, params, None, None)
        return Learner(config, strategist, mesh, tmp_path / "run" / "checkpoints", stop or StopRequest(), {"warm_start": 0, "rounds": 6})

    def learn(one: Learner, steps: int) -> list[dict[str, float]]:
        return list(one.take_steps(iter([BATCH] * steps), steps, on_step=lambda tokens: None))

    unbroken = learner()
    unbroken.begin_rounds()
    rows = learn(unbroken, 3)
    assert rows[-1]["loss"] < rows[0]["loss"]
    unbroken.end_round()
    (tmp_path / "run").rename(tmp_path / "unbroken")

    stop = StopRequest()
    stopped = learner(stop)
    stopped.begin_rounds()
    with pytest.raises(Stopped):
        for number, _ in enumerate(stopped.take_steps(iter([BATCH] * 3), 3, on_step=lambda tokens: None)):
            stop.requested = True
    again = learner()
    assert again.position.steps == 2
    for _ in again.take_steps(iter([BATCH]), 3, on_step=lambda tokens: None):
        pass
    again.end_round()
    jax.tree.map(np.testing.assert_array_equal, again.state, unbroken.state)

    # the sampler's weights are merged, the learner's are not: what it scores differs by rounding alone
    played = np.asarray(make_scorer(CONFIG)(again.playing_params(), BATCH))
    (row,) = again.take_steps(iter([BATCH._replace(behavior_logprobs=played)]), 1, on_step=lambda tokens: None)
    assert 0.0 < row["logprob_gap"] < 1e-5

    strategists.Tokenizer.load(MINI).save(tmp_path / "run" / "tokenizer")
    export(tmp_path / "run", tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = BATCH.tokens[0, :2, :10]
    flat = [jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(10), (2, 10)), jnp.ones((2, 10), jnp.int32)]
    weights = lora.attach(parameters(), unbroken.state.params, Lora(rank=2))
    logits = llama.logits(weights, CONFIG, llama.hidden_states(weights, CONFIG, *flat))
    with torch.no_grad():
        np.testing.assert_allclose(exported(torch.from_numpy(tokens).long()).logits.numpy(), logits, atol=1e-4)
    assert np.abs(np.asarray(logits) - np.asarray(llama.logits(parameters(), CONFIG, llama.hidden_states(parameters(), CONFIG, *flat)))).max() > 0.1
    found = strategists.from_checkpoint(str(tmp_path / "run"))
    assert_close(jax.device_get(found.params), jax.device_get(lora.merge(parameters(), unbroken.state.params, Lora(rank=2))), atol=1e-6)
    record = json.loads(next((tmp_path / "run" / "checkpoints").glob("step_*/checkpoint.json")).read_text())["record"]
    assert record["lora"]["rank"] == 2 and len(record["lora"]["base"]) == 16

    other = jax.tree.map(lambda array: array * 1.01, parameters())
    hf_weights.save(tmp_path / "base", CONFIG, other, MINI)
    for use in (learner, lambda: strategists.from_checkpoint(str(tmp_path / "run"))):
        with pytest.raises(UserError, match="have changed since"):
            use()
