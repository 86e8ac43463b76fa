"""The forward pass against transformers' LlamaForCausalLM and MistralForCausalLM, and its own cached forms against it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="transformers' reference models need torch: pip install torch==2.13.0")

from epo_jax.model import llama  # noqa: E402
from tests.model.reference import VARIANTS, random_params, torch_logits, torch_model  # noqa: E402

TOLERANCE = 1e-4
LENGTH = 48  # beyond the sliding window (7) and beyond the original context of the scaled ropes (32)


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request):
    config = VARIANTS[request.param]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(4, config.vocab_size, (3, LENGTH))
    return config, params, torch_model(config, params), tokens


def ours(config, params, tokens, positions, segments, **options) -> np.ndarray:
    def forward(params, *arrays):
        return llama.logits(params, config, llama.hidden_states(params, config, *arrays, **options))

    return np.asarray(jax.jit(forward)(params, *(jnp.asarray(x, jnp.int32) for x in (tokens, positions, segments))))


def counting(batch: int, length: int = LENGTH) -> np.ndarray:
    return np.broadcast_to(np.arange(length), (batch, length))


def test_right_padding(variant) -> None:
    config, params, torch_side, tokens = variant
    mask = np.arange(LENGTH) < np.array([[LENGTH], [31], [5]])
    want = torch_logits(torch_side, tokens, mask)
    assert want.std() > 0.5  # else the comparison would say little
    got = ours(config, params, tokens, counting(3), mask)
    assert np.abs(got - want)[mask].max() < TOLERANCE


def test_left_padding(variant) -> None:
    config, params, torch_side, tokens = variant
    mask = np.arange(LENGTH) >= np.array([[0], [17], [40]])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    want = torch_logits(torch_side, tokens, mask, positions)
    got = ours(config, params, tokens, positions, mask)
    assert np.abs(got - want)[mask].max() < TOLERANCE
    assert np.isfinite(got).all()  # padding queries see nothing, and must not become NaN


def test_packed_segments(variant) -> None:
    """A row of several conversations gives each the logits that it has alone."""
    config, params, torch_side, tokens = variant
    ends = [13, 14, 40]  # then 8 tokens of padding
    segments, positions = np.zeros((1, LENGTH), int), np.zeros((1, LENGTH), int)
    start, want = 0, []
    for number, end in enumerate(ends, 1):
        segments[0, start:end], positions[0, start:end] = number, np.arange(end - start)
        want.append(torch_logits(torch_side, tokens[:1, start:end])[0])
        start = end
    got = ours(config, params, tokens[:1], positions, segments)
    assert np.abs(got[0, : ends[-1]] - np.concatenate(want)).max() < TOLERANCE


def test_long_rows_take_blocks_of_queries(variant) -> None:
    """Beyond 128 tokens, attention goes block by block; the last block is not full."""
    config, params, torch_side, _ = variant
    tokens = np.random.default_rng(1).integers(4, config.vocab_size, (2, 200))
    mask = np.arange(200) < np.array([[200], [150]])
    got = ours(config, params, tokens, counting(2, 200), mask)
    assert np.abs(got - torch_logits(torch_side, tokens, mask))[mask].max() < TOLERANCE


def test_prefill_then_decode_equals_the_full_forward(variant) -> None:
    """Two prefills of different lengths for each row, then single tokens: the logits are those of one pass over everything."""
    config, params, torch_side, tokens = variant
    want = torch_logits(torch_side, tokens)
    capacity, batch = 64, 3
    shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    # What lies in unwritten slots must not matter.
    k_cache, v_cache = np.full(shape, 50.0, np.float32).swapaxes(3, 4), np.full(shape, -50.0, np.float32)
    run = jax.jit(llama.prefill, static_argnums=1)
    begin = np.zeros(batch, int)
    for lengths in ([20, 3, 11], [9, 16, 0]):
        window = 20
        positions = np.where(np.arange(window) < np.array(lengths)[:, None], begin[:, None] + np.arange(window), -1)
        fed = np.where(positions >= 0, np.take_along_axis(tokens, np.maximum(positions, 0), axis=1), 0)
        hidden, k_new, v_new = map(np.asarray, run(params, config, fed, positions, k_cache, v_cache))
        got = np.asarray(llama.logits(params, config, jnp.asarray(hidden)))
        for row, column in zip(*np.nonzero(positions >= 0), strict=True):
            slot = positions[row, column]
            assert np.abs(got[row, column] - want[row, slot]).max() < TOLERANCE
            k_cache[:, row, :, :, slot], v_cache[:, row, :, slot] = k_new[:, row, column], v_new[:, row, column]
        begin += lengths
    layers, rest = llama.unstack(params)
    caches = [(jnp.asarray(k_cache[i]), jnp.asarray(v_cache[i])) for i in range(config.num_layers)]
    step = jax.jit(lambda tokens, positions, caches: llama.decode_step(layers, rest, config, tokens, positions, caches))
    for _ in range(5):
        got, caches = step(jnp.asarray(tokens[np.arange(batch), begin]), jnp.asarray(begin), caches)
        assert np.abs(np.asarray(got) - want[np.arange(batch), begin]).max() < TOLERANCE
        begin += 1


def test_decoding_leaves_idle_rows_alone() -> None:
    config = VARIANTS["llama3"]
    layers, rest = llama.unstack(random_params(config))
    cache = jax.random.normal(jax.random.key(0), (2, config.num_kv_heads, 16, config.head_dim))
    caches = [(cache.swapaxes(2, 3), cache)] * config.num_layers
    step = jax.jit(lambda tokens, positions, caches: llama.decode_step(layers, rest, config, tokens, positions, caches))
    _, after = step(jnp.array([5, 5]), jnp.array([-1, 3]), caches)
    for k, v in after:
        for after_one in (k.swapaxes(2, 3), v):
            assert (after_one[0] == cache[0]).all()
            assert (after_one[1, :, 3] != cache[1, :, 3]).all() and (after_one[1, :, 4:] == cache[1, :, 4:]).all()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat) -> None:
    config = VARIANTS["llama3.2"]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(4, config.vocab_size, (2, 20))

    def loss(params, remat):
        positions, segments = jnp.asarray(counting(2, 20)), jnp.ones((2, 20), jnp.int32)
        return jnp.sum(jnp.sin(llama.hidden_states(params, config, jnp.asarray(tokens), positions, segments, remat=remat)))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    want, got = gradient(params, "none"), gradient(params, remat)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert np.abs(a - b).max() < 1e-5 * max(1.0, np.abs(a).max())


def test_bfloat16_stays_near_float32() -> None:
    config = VARIANTS["llama3"]
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(4, config.vocab_size, (2, 20))
    exact = ours(config, params, tokens, counting(2, 20), np.ones((2, 20)))
    rounded = ours(config, params, tokens, counting(2, 20), np.ones((2, 20)), compute_dtype=jnp.bfloat16)
    assert 0 < np.abs(exact - rounded).mean() < 0.05 * np.abs(exact).mean()  # 8 bits of mantissa through two layers


def test_module_and_parameters_are_each_others_inverse() -> None:
    config = VARIANTS["llama3"]
    model = llama.Llama(config, rngs=nnx.Rngs(0))
    params = llama.params_of(model)
    assert sum(x.size for x in jax.tree.leaves(params)) == config.num_params
    again = llama.params_of(llama.model_from(config, params))
    assert jax.tree.structure(params) == jax.tree.structure(again)
    assert all(a is b or (a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))
    abstract = nnx.eval_shape(lambda: llama.Llama(config, rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, llama.params_of(abstract)) == jax.tree.map(jnp.shape, params)


def test_weights_start_with_the_variance_they_declare() -> None:
    """Hidden activations of an untrained model keep a sensible scale whatever its size."""
    for config in (VARIANTS["llama3"], VARIANTS["llama2"]):
        params = llama.init_params(config, jax.random.key(0))
        assert np.allclose(np.std(params["layers"]["wq"]), config.hidden_size**-0.5, rtol=0.1)
        assert (params["final_norm"] == 1).all()
