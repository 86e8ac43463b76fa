"""The arithmetic of a plan, by hand; and the names of chips."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest

from epo_jax.errors import UserError
from epo_jax.model.config import LlamaConfig
from epo_jax.model.lora import Lora
from tools.planning import formula
from tools.planning.chips import CHIPS, GIB, topology
from tools.planning.formula import Work

MODELS = pathlib.Path(__file__).parents[3] / "configs" / "models"


def model(name: str) -> LlamaConfig:
    return LlamaConfig.from_hf(json.loads((MODELS / f"{name}.json").read_text()))


# The publishers' own counts of weights.
@pytest.mark.parametrize(("name", "count"), [("llama-3.2-1b", 1_235_814_400), ("llama-3-8b", 8_030_261_248), ("llama-3.1-70b", 70_553_706_496)])
def test_the_models_are_the_published_ones(name, count) -> None:
    assert model(name).num_params == count


def test_flops_by_hand() -> None:
    small = LlamaConfig(vocab_size=10, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2)
    # a layer: q 4·2·2, k and v 4·1·2 each, o 2·2·4, feed-forward 3·4·6; the head 4·10
    products = 2 * (16 + 8 + 8 + 16 + 72) + 40
    assert formula.matmul_params(small) == products
    # causal attention: (T²/2) pairs, 2 products of 2 FLOPs over 2·2, forward and twice that backward
    assert formula.learn_flops(Work(small, rows=3, length=8)) == 6 * products * 24 + 3 * 2 * (3 * (8 * 8 / 2) * 2 * 2 * 4)
    assert formula.decode_flops(small, rows=5, cached=7) == 5 * (2 * products + 2 * (7 * 2 * 2 * 4))


def test_the_state_is_split_and_the_guess_sees_it() -> None:
    work = Work(model("llama-3-8b"), rows=16, length=4096)
    whole = 16 * model("llama-3-8b").num_params
    sixteen = formula.guess(work, {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 1})
    assert whole / 16 < sixteen.bytes < 15.75 * GIB
    assert formula.guess(work, {"data": 16, "fsdp": 1, "sequence": 1, "tensor": 1}).bytes > whole
    adapted = formula.guess(dataclasses.replace(work, lora=Lora(8)), {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 1})
    assert adapted.bytes < sixteen.bytes - 0.7 * 12 / 16 * model("llama-3-8b").num_params


def test_candidates_divide_the_model_and_use_every_chip() -> None:
    work = Work(model("llama-3-8b"), rows=1, length=4096)
    found = formula.candidates(work, chips=16, hbm=CHIPS["v5e"].hbm)
    assert found and len(found) <= 3
    for guess in found:
        assert math.prod(guess.mesh.values()) == 16
        assert guess.mesh["tensor"] <= 8  # it has 8 key/value heads
    assert found[0].mesh["fsdp"] * found[0].mesh["tensor"] == 16


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    work = Work(model("llama-3.1-70b"), rows=1, length=4096)
    (only, *_) = formula.candidates(work, chips=4, hbm=CHIPS["v5e"].hbm, most=1)
    assert only.bytes == min(formula.guess(dataclasses.replace(work, rows=mesh["fsdp"]), mesh).bytes for mesh in formula.meshes(work.model, 4))


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
