"""The arithmetic of a plan, by hand; and the names of chips."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest

from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.mesh import AXES
from epo_jax.model.config import LlamaConfig
from tools.planning import formula
from tools.planning.chips import CHIPS, GIB, topology

REPOSITORY = pathlib.Path(__file__).parents[3]
MODELS, CELLS = REPOSITORY / "configs" / "models", REPOSITORY / "docs" / "scaling"


def model(name: str) -> LlamaConfig:
    return LlamaConfig.from_hf(json.loads((MODELS / f"{name}.json").read_text()))


# The publishers' own counts of weights.
@pytest.mark.parametrize(("name", "count"), [("llama-3.2-1b", 1_235_814_400), ("llama-3-8b", 8_030_261_248), ("llama-3.1-70b", 70_553_706_496)])
def test_the_models_are_the_published_ones(name, count) -> None:
    assert model(name).num_params == count


def settings(changes: dict = {}):  # noqa: B006
    """As the table's: bfloat16, remat full, one row of 4096 tokens a device."""
    config = get_defaults()
    config.update_from_flattened_dict({"learn.max_length": 4096, "learn.rows": 1, "model.compute_dtype": "bfloat16"} | changes)
    return config


def guess(of: LlamaConfig, changes: dict = {}, *, platform: str = "tpu", **mesh: int) -> formula.Guess:  # noqa: B006
    return formula.guess(settings(changes), of, dict.fromkeys(AXES, 1) | mesh, platform=platform)


def candidates(name: str, **options) -> list[formula.Guess]:
    return formula.candidates(settings(), model(name), platform="tpu", **options)


def test_flops_by_hand() -> None:
    small = LlamaConfig(vocab_size=10, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2)
    # a layer: q 4·2·2, k and v 4·1·2 each, o 2·2·4, feed-forward 3·4·6; the head 4·10
    products = 2 * (16 + 8 + 8 + 16 + 72) + 40
    assert formula.matmul_params(small) == products
    # causal attention: (T²/2) pairs, 2 products of 2 FLOPs over 2·2, forward and twice that backward
    assert formula.learn_flops(small, 3, 8) == 6 * products * 24 + 3 * 2 * (3 * (8 * 8 / 2) * 2 * 2 * 4)
    assert formula.decode_flops(small, rows=5, cached=7) == 5 * (2 * products + 2 * (7 * 2 * 2 * 4))


def test_the_state_is_split_and_the_guess_sees_it() -> None:
    eight, whole = model("llama-3-8b"), 16 * model("llama-3-8b").num_params
    sixteen = guess(eight, fsdp=16)
    assert whole / 16 < sixteen.bytes < 15.75 * GIB
    assert guess(eight, data=16).bytes > whole
    adapted = guess(eight, {"model.lora.rank": 8}, fsdp=16)
    assert adapted.bytes < sixteen.bytes - 0.7 * 12 / 16 * eight.num_params


def test_candidates_divide_the_model_and_use_every_chip() -> None:
    found = candidates("llama-3-8b", chips=16, hbm=CHIPS["v5e"].hbm)
    assert found and len(found) <= 3
    for one in found:
        assert math.prod(one.mesh.values()) == 16
        assert one.mesh["tensor"] <= 8  # it has 8 key/value heads
    assert found[0].mesh["fsdp"] * found[0].mesh["tensor"] == 16


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    (only, *_) = candidates("llama-3.1-70b", chips=4, hbm=CHIPS["v5e"].hbm, most=1)
    assert only.bytes == min(guess(model("llama-3.1-70b"), **mesh).bytes for mesh in formula.meshes(model("llama-3.1-70b"), 4))


@pytest.mark.parametrize("path", sorted(CELLS.glob("*.json")), ids=lambda path: path.stem)
def test_the_guess_is_near_what_the_compiler_said(path) -> None:
    """All cells of docs/scaling.md: `epo_jax.memory_plan` against the peak of a pass."""
    for plan in json.loads(path.read_text()):
        if "pass" in plan["programs"] and not plan["programs"]["pass"]["refused"]:
            guessed = guess(model(path.stem.split("_")[0]), platform="tpu" if topology(plan["topology"]).chip.tpu else "gpu", **plan["mesh"])
            assert 0.8 < guessed.bytes / plan["programs"]["pass"]["peak"] < 1.15


def test_a_mesh_that_does_not_divide_is_no_candidate() -> None:
    assert [mesh["tensor"] for mesh in formula.meshes(model("llama-3.2-1b"), 64)] == [1, 2, 4, 8]
    assert formula.meshes(dataclasses.replace(model("llama-3.2-1b"), hidden_size=2049, head_dim=64), 2) == []


def test_rows_are_rounded_up_to_what_the_mesh_divides() -> None:
    assert [formula.rows_for(rows, {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 2}) for rows in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize(
    ("name", "canonical", "count"),
    [
        ("v5p:2x2x1", "v5p:2x2x1", 4),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5e-16", "v5e:4x4", 16),
        ("V6E-16", "v6e:4x4", 16),
        ("8xH100", "h100:8", 8),
        ("8×h100", "h100:8", 8),
        ("h200:1", "h200:1", 1),
    ],
)
def test_names_of_chips(name, canonical, count) -> None:
    assert (topology(name).name, topology(name).count) == (canonical, count)


@pytest.mark.parametrize("name", ["", "v5p", "v5p:2x2", "v5e:0x4", "v9-8", "v5p-7", "v5e-12", "h100:0", "h100:2x2", "v5e:16", "8xv5e", "; rm"])
def test_names_of_none(name) -> None:
    with pytest.raises(UserError):
        topology(name)


@pytest.mark.parametrize(("name", "host", "processes"), [("v5e-16", "v5e:2x2", 4), ("v5e-8", "v5e:2x4", 1), ("v5p-8", "v5p:2x2x1", 1), ("v5p-64", "v5p:2x2x1", 8), ("8xh100", "h100:8", 1)])
def test_a_process_has_the_chips_of_one_machine(name, host, processes) -> None:
    assert (topology(name).host.name, topology(name).processes) == (host, processes)
