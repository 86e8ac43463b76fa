"""`attend` against attention written out in numpy, and the accelerator kernels against the same rule.

Splash runs in Pallas' interpreter here, and is compiled for TPU where libtpu is installed. cuDNN itself needs an NVIDIA card; its
arguments are checked by letting XLA compute the same call.
"""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.mesh import make_mesh
from epo_jax.model import attention, attention_gpu, attention_tpu
from epo_jax.model.stretches import stretches


def written_out(q, k, v, q_positions, kv_positions, q_segments, kv_segments, window) -> np.ndarray:
    """The rule, one query at a time, in float64; zeros for a query that sees nothing."""
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, t in np.ndindex(q.shape[:2]):
        distance = q_positions[b, t] - kv_positions[b]
        sees = (kv_segments[b] == q_segments[b, t]) & (q_segments[b, t] != 0) & (distance >= 0) & (distance < (window or 10**9))
        for n in range(q.shape[2]) if sees.any() else ():
            scores = k[b, sees, n // groups].astype(np.float64) @ q[b, t, n] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, sees, n // groups] / weights.sum()
    return out


def random_case(length: int, heads=4, kv_heads=2, head_dim=16, seed=0):
    """Two rows: the first packs three segments and ends in padding, the second begins with padding."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, length, heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(size=(2, length, kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    segments, positions = np.zeros((2, length), np.int32), np.zeros((2, length), np.int32)
    cuts = [0, length // 5, length // 2, length - length // 8]
    for number, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False), 1):
        segments[0, start:end], positions[0, start:end] = number, np.arange(end - start)
    start = length // 6
    segments[1, start:], positions[1, start:] = 1, np.arange(length - start)
    return q, k, v, positions, segments


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("aligned", [True, False])
def test_xla_is_the_rule(window, aligned) -> None:
    q, k, v, positions, segments = random_case(150)  # two blocks of queries, the second not full
    got = attention.attend(
        q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segments, kv_segment_ids=segments,
        sliding_window=window, aligned=aligned, implementation="xla",
    )  # fmt: skip
    want = written_out(q, k, v, positions, positions, segments, segments, window)
    real = segments != 0
    assert np.abs(np.asarray(got) - want)[real].max() < 1e-5
    assert np.isfinite(got).all()


def test_xla_reads_a_cache_by_position() -> None:
    """Fewer queries than keys, keys in any order: only segments and positions count."""
    q, k, v, positions, segments = random_case(40)
    order = np.random.default_rng(1).permutation(40)
    got = attention.attend(
        q[:, 30:], k[:, order], v[:, order], q_positions=positions[:, 30:], kv_positions=positions[:, order],
        q_segment_ids=segments[:, 30:], kv_segment_ids=segments[:, order],
    )  # fmt: skip
    want = written_out(q, k, v, positions, positions, segments, segments, None)
    real = segments[:, 30:] != 0
    assert np.abs(np.asarray(got) - want[:, 30:])[real].max() < 1e-5


@pytest.mark.parametrize(("window", "length"), [(None, 256), (40, 200)])
def test_splash_is_the_rule(window, length) -> None:
    q, k, v, positions, segments = random_case(length)
    real = jnp.asarray(segments != 0)[..., None, None]

    def splash(q, k, v):
        out = attention_tpu.splash(q, k, v, jnp.asarray(segments), sliding_window=window, interpret=True)
        return jnp.where(real, out, 0)

    def xla(q, k, v):
        out = attention.attend(
            q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segments, kv_segment_ids=segments,
            sliding_window=window, aligned=True, implementation="xla",
        )  # fmt: skip
        return jnp.where(real, out, 0)

    want = written_out(q, k, v, positions, positions, segments, segments, window)
    assert np.abs(np.asarray(splash(q, k, v)) - want).max() < 1e-4
    pull = jnp.asarray(np.random.default_rng(3).normal(size=q.shape), jnp.float32)
    gradients = [jax.grad(lambda *qkv, f=f: jnp.vdot(f(*qkv), pull), (0, 1, 2))(q, k, v) for f in (splash, xla)]
    for ours, theirs in zip(*gradients, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4


def test_splash_on_a_mesh_computes_each_devices_part() -> None:
    q, k, v, _, segments = random_case(128)
    q, k, v, segments = (np.concatenate([x, x]) for x in (q, k, v, segments))
    alone = attention_tpu.splash(q, k, v, segments, sliding_window=None, interpret=True)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    run = jax.jit(lambda *a: attention_tpu.splash(*a, sliding_window=None, mesh=mesh, interpret=True))
    together = run(q, k, v, segments)
    assert np.abs(np.asarray(together) - np.asarray(alone))[segments != 0].max() < 1e-5
    assert "tensor" in str(together.sharding.spec)


@pytest.mark.parametrize("window", [None, pytest.param(100, marks=pytest.mark.slow)])
def test_splash_over_stretches_is_the_rule(window) -> None:
    """Rows over two devices, keys and values gathered: values and gradients of one device."""
    q, k, v, positions, segments = random_case(512)
    mesh = make_mesh({"sequence": 2, "tensor": 2}, jax.devices()[:4])
    split, real = stretches(mesh, 512), jnp.asarray(segments != 0)[..., None, None]

    def together(q, k, v):
        out = attention_tpu.splash(
            *(split.spread(x) for x in (q, k, v)), split.spread(jnp.asarray(segments)), sliding_window=window, mesh=mesh, interpret=True
        )
        return jnp.where(real, split.collect(out), 0)

    def alone(q, k, v):
        out = attention.attend(
            q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segments, kv_segment_ids=segments,
            sliding_window=window, aligned=True, implementation="xla",
        )  # fmt: skip
        return jnp.where(real, out, 0)

    pull = jnp.asarray(np.random.default_rng(3).normal(size=q.shape), jnp.float32)

    def run(f):
        def back(*qkv):
            out, gradients_of = jax.vjp(f, *qkv)
            return out, *gradients_of(pull)

        return jax.jit(back)(q, k, v)

    for ours, theirs in zip(run(together), run(alone), strict=True):
        assert np.abs(ours - theirs).max() < 1e-4 < np.abs(theirs).max()


def test_cudnn_is_asked_for_the_rule() -> None:
    q, k, v, positions, segments = random_case(64)
    for window in (None, 9):
        mask = attention.visible(positions, positions, segments, segments, window)
        got = attention_gpu.cudnn(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), mask, aligned=True, implementation="xla")
        want = written_out(q, k, v, positions, positions, segments, segments, window)
        assert np.abs(np.asarray(got) - want)[segments != 0].max() < 1e-5
        assert np.isfinite(got).all()


def shape(length=256, head_dim=128, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, length, 4, head_dim), dtype)


H100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
A100 = types.SimpleNamespace(platform="gpu", compute_capability="8.0")
V100 = types.SimpleNamespace(platform="gpu", compute_capability="7.0")
AMD = types.SimpleNamespace(platform="gpu", compute_capability=None)
TPU = types.SimpleNamespace(platform="tpu")
CPU = types.SimpleNamespace(platform="cpu")


@pytest.mark.parametrize(
    ("device", "q", "k", "aligned", "choice"),
    [
        (H100, shape(), shape(), True, "cudnn"),
        (H100, shape(head_dim=256), shape(head_dim=256), True, "cudnn"),
        (A100, shape(head_dim=256), shape(head_dim=256), True, "xla"),
        (A100, shape(), shape(512), False, "cudnn"),
        (A100, shape(dtype=jnp.float32), shape(dtype=jnp.float32), True, "xla"),
        (A100, shape(head_dim=20), shape(head_dim=20), True, "xla"),
        (A100, shape(255), shape(255), True, "xla"),
        (A100, shape(1), shape(512), False, "xla"),
        (V100, shape(), shape(), True, "xla"),
        (AMD, shape(), shape(), True, "xla"),
        (TPU, shape(), shape(), True, "splash"),
        (TPU, shape(200), shape(200), True, "splash"),
        (TPU, shape(64), shape(64), True, "xla"),
        (TPU, shape(128), shape(512), False, "xla"),
        (CPU, shape(), shape(), True, "xla"),
    ],
)
def test_choice(device, q, k, aligned, choice) -> None:
    assert attention.choose(q, k, aligned=aligned, device=device) == choice


def test_unknown_implementation() -> None:
    q, k, v, positions, segments = random_case(8)
    with pytest.raises(ValueError, match="flash"):
        attention.attend(
            q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segments, kv_segment_ids=segments, implementation="flash"
        )
