"""Collectives read from the text of compiled programs: texts written by hand, and a program whose collectives are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from epo_jax.mesh import make_mesh
from tools.planning.collectives import Collective, collectives

# A scan of 5 over a body with one all-gather; TPU's way to note the length: a counter from 0 by 1 (here: by 2) against a constant.
TPU_LOOP = """HloModule jit_f

%cond (p.1: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (p.2: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %two = s32[]{:T(128)} constant(2)
  %p.2 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %old = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %all-gather.1 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  %new = s32[]{:T(128)} add(%old, %two)
  ROOT %next = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%new, %x)
}

ENTRY %main (x.1: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%start), condition=%cond, body=%body
  ROOT %end = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""

KINDS = """HloModule jit_g

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%yes (y: f32[4]) -> f32[4] {
  %y = f32[4]{0} parameter(0)
  ROOT %all-reduce.2 = f32[4]{0} all-reduce(%y), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%no (n: f32[4]) -> f32[4] {
  ROOT %n = f32[4]{0} parameter(0)
}

ENTRY %main (x: f32[4], p: pred[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %p = pred[] parameter(1)
  %reduce-scatter.1 = f32[1]{0} reduce-scatter(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
  %permute = (bf16[16]{0}, bf16[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %arrived = bf16[16]{0} collective-permute-done(%permute)
  %exchange = (f32[2]{0}, f32[2]{0}) all-to-all(%x, %x), channel_id=4, replica_groups=[1,2]<=[2]
  ROOT %chosen = f32[4]{0} conditional(%p, %x, %x), branch_computations={%yes, %no}
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    assert collectives(TPU_LOOP) == {"all-gather": Collective(5, 5 * 32 * 128 * 2)}


def test_the_compilers_own_count_comes_first() -> None:
    noted = TPU_LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert collectives(noted)["all-gather"].count == 3


def test_a_loop_of_unknown_length_counts_once() -> None:
    assert collectives(TPU_LOOP.replace("direction=LT", "direction=NE"))["all-gather"].count == 1


def test_kinds_and_their_larger_side() -> None:
    assert collectives(KINDS) == {
        "all-reduce": Collective(1, 16),
        "all-to-all": Collective(1, 16),
        "collective-permute": Collective(1, 32),
        "reduce-scatter": Collective(1, 16),
    }


def test_a_collective_that_is_spread_over_computations_is_one() -> None:
    twice = KINDS.replace("  ROOT %n = f32[4]{0} parameter(0)", "  %n = f32[4]{0} parameter(0)\n  ROOT %same = f32[4]{0} all-reduce(%n), channel_id=2, to_apply=%add")
    assert twice != KINDS and collectives(twice)["all-reduce"].count == 1


def test_no_module() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("nothing")


@pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
def test_a_compiled_program() -> None:
    """A product in a scan of 6 whose contracted dimension is split over 4: one sum over devices a step, of 16 × 24 float32."""
    mesh = make_mesh({"tensor": 4, "data": 2})
    weights = jax.ShapeDtypeStruct((6, 64, 24), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "tensor")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "tensor")))

    def run(x, weights):
        return jax.lax.scan(lambda total, weight: (total + jnp.sin(x + total[0, 0]) @ weight, None), jnp.zeros((16, 24)), weights)[0]

    found = collectives(jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(x, weights).compile().as_text())
    assert found == {"all-reduce": Collective(6, 6 * 16 * 24 * 4)}


@pytest.mark.skipif(jax.device_count() < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
def test_what_goes_from_device_to_device_is_counted_hop_by_hop() -> None:
    """All that `shard_map` sends has one channel; three hops of 16 float32 are three."""
    mesh, hops = make_mesh({"sequence": 8}), [(device, (device + 1) % 8) for device in range(8)]

    def local(x):
        for _ in range(3):
            x = jax.lax.ppermute(jnp.sin(x), "sequence", hops)
        return x

    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec("sequence"), out_specs=PartitionSpec("sequence")))
    assert collectives(run.lower(jnp.ones(128)).compile().as_text()) == {"collective-permute": Collective(3, 3 * 16 * 4)}
