"""Rows whose tokens lie on several devices: the order they lie in, and attention over it against the rule written out in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.mesh import make_mesh
from epo_jax.model import attention, attention_sequence, stretches as layouts
from epo_jax.model.stretches import Stretches, stretches
from tests.model.test_attention import random_case, written_out

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")

def on(shape: dict[str, int]) -> jax.sharding.Mesh:
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


def both_rules(mesh, length: int, window: int | None):
    """(attention over the mesh, attention on one device), of q, k, v in the order of the conversation, and the case."""
    q, k, v, positions, segments = random_case(length)
    split = stretches(mesh, length)

    def over_the_mesh(q, k, v):
        ids = {name: split.spread(jnp.asarray(x)) for name, x in (("positions", positions), ("segment_ids", segments))}
        q, k, v = (split.spread(x) for x in (q, k, v))
        return split.collect(attention_sequence.attend(q, k, v, **ids, sliding_window=window, mesh=mesh))

    def on_one(q, k, v):
        out = attention.attend(
            q, k, v, q_positions=positions, kv_positions=positions, q_segment_ids=segments, kv_segment_ids=segments, sliding_window=window,
            aligned=True, implementation="xla",
        )  # fmt: skip
        return jnp.where((segments != 0)[..., None, None], out, 0.0)

    return over_the_mesh, on_one, (q, k, v, positions, segments)


@pytest.mark.parametrize("ways", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [16, 37, 96])
def test_every_token_lies_once_and_comes_back(ways: int, length: int) -> None:
    split = stretches(on({"sequence": ways}), length)
    x = jnp.arange(1, 2 * length + 1).reshape(2, length)
    spread = split.spread(x)
    assert np.array_equal(split.collect(spread), x)
    assert sorted(spread[spread > 0].tolist()) == list(range(1, 2 * length + 1))
    assert np.array_equal(split.together(split.apart(spread)), spread)
    if ways > 1:
        assert split.apart(spread).shape == (2, ways, 2 * split.chunk)


def test_each_device_has_an_early_and_a_late_chunk() -> None:
    split = Stretches(ways=3, length=12, chunk=2)
    assert split.apart(split.spread(jnp.arange(12)[None]))[0].tolist() == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("shape", "length", "window"),
    [({"sequence": 2}, 40, None), ({"sequence": 3}, 41, 7), ({"sequence": 8}, 80, None), ({"fsdp": 2, "sequence": 2, "tensor": 2}, 33, None)],
)
def test_attention_is_the_rule(shape, length, window) -> None:
    """Packed rows, padding at the beginning and the end, lengths that do not divide, a window: values in float64 and gradients of one device."""
    over_the_mesh, on_one, (q, k, v, positions, segments) = both_rules(on(shape), length, window)
    want = written_out(q, k, v, positions, positions, segments, segments, window)
    pull = jnp.asarray(np.random.default_rng(3).normal(size=q.shape), jnp.float32)
    pull = jnp.where((segments != 0)[..., None, None], pull, 0.0)

    def run(f):
        def back(*qkv):
            out, gradients_of = jax.vjp(f, *qkv)
            return out, gradients_of(pull)

        return jax.jit(back)(q, k, v)

    (ours, our_gradients), (_, gradients) = run(over_the_mesh), run(on_one)
    assert np.abs(np.asarray(ours) - want).max() < 1e-5
    for mine, theirs in zip(our_gradients, gradients, strict=True):
        assert np.abs(mine - theirs).max() < 1e-5 and np.abs(theirs).max() > 0.1


def test_tiles_change_nothing(monkeypatch) -> None:
    results = []
    for tile in (512, 4):
        monkeypatch.setattr(layouts, "TILE", tile)
        over_the_mesh, _, (q, k, v, *_) = both_rules(on({"sequence": 2}), 44, None)
        results.append(jax.jit(jax.value_and_grad(lambda *qkv, f=over_the_mesh: jnp.sum(jnp.sin(f(*qkv))), (0, 1, 2)))(q, k, v))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    assert np.abs(results[0][1][0]).max() > 0.01
