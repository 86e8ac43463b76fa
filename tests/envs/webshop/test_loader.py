"""Files and records: what is read, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import pathlib

import pytest

from envs.webshop import loader
from envs.webshop.loader import products_in, stream_list, stream_object
from envs.webshop.products import product_of
from epo_jax.errors import UserError


def record(asin="B1", **changes):
    return {
        "asin": asin, "name": f"Name {asin}", "full_description": "d", "small_description": ["b"], "category": "c", "query": "q",
        "product_category": "x › y", "customization_options": "", "pricing": "$1,299.50",
    } | changes  # fmt: skip


def write(folder: pathlib.Path, products, attributes=None, human=None) -> pathlib.Path:
    text = products if isinstance(products, str) else json.dumps(products)
    (folder / "items_shuffle_1000.json").write_text(text, encoding="utf-8")
    if attributes is not None:
        (folder / "items_ins_v2_1000.json").write_text(json.dumps(attributes))
    if human is not None:
        (folder / "items_human_ins.json").write_text(json.dumps(human))
    return folder


def test_a_folder(tmp_path):
    asked = [{"instruction": "get it", "instruction_attributes": ["a"], "instruction_options": ["l"]}]
    attributes = {"B1": {"attributes": ["soft"], "instruction": "Find me", "instruction_attributes": ["soft"]}}
    found = list(products_in(write(tmp_path, [record(), record("B2"), record(), record("nan"), record("12345678901")], attributes, {"B2": asked})))
    assert [product.asin for product in found] == ["B1", "B2"]
    assert found[0].attributes == found[0].instruction_attributes == ("soft",) and found[0].instruction == "Find me"
    assert found[0].prices == (1299.5,) and found[0].price_tag == "$1299.5" and found[0].human == ()
    assert found[1].attributes == ("DUMMY_ATTR",) and found[1].instruction is None
    assert [(asked.text, asked.attributes, asked.options) for asked in found[1].human] == [("get it", ("a",), ("l",))]


def test_a_large_attributes_file_is_looked_up_on_disk(tmp_path, monkeypatch):
    attributes = {"B2": {"attributes": ["soft"], "instruction": "Find me", "instruction_attributes": ["soft"]}, "B3": {}}
    folder = write(tmp_path, [record(), record("B2"), record("B3")], attributes)
    in_memory = list(products_in(folder))
    monkeypatch.setattr(loader, "TABLE_IN_MEMORY", 0)
    assert list(products_in(folder)) == in_memory and in_memory[1].attributes == ("soft",)


@pytest.mark.parametrize(
    ("pricing", "prices", "tag"),
    [
        ("$12.99", (12.99,), "$12.99"),
        ("$19.99 $27.99", (19.99, 27.99), "$19.99 to $27.99"),
        ("$1 $2 $3", (1.0, 2.0), "$1.0 to $2.0"),
        ("", (100.0,), "$100.0"),
        (None, (100.0,), "$100.0"),
        ("ask us", (100.0,), "$100.0"),
        ("$1.2.3", (100.0,), "$100.0"),
    ],
)
def test_prices(pricing, prices, tag):
    product = product_of(record(pricing=pricing))
    assert product.prices == prices and product.price_tag == tag


def test_a_product_without_a_price_costs_a_hundred_dollars():
    without = record()
    del without["pricing"]
    assert product_of(without).prices == (100.0,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "breaks off or is no valid JSON after 0 values"),
        ("[", "after 0 values"),
        ("{}", "after 0 values"),
        ("[]", "holds no products"),
        ('[{"asin": "nan"}]', "holds no products"),
        (json.dumps([record(), record("B2")])[:-30], "after 1 values: download it again"),
        (json.dumps([record()])[:-1] + " x", "after 1 values"),
        ("[3]", "product 0 of .* is no JSON object"),
        ('[{"asin": "B1"}]', "has no 'name'"),
        (json.dumps([record(customization_options={"size": [{"v": 1}]})]), "has an option 'size' without a 'value'"),
        (json.dumps([record(customization_options=[1])]), "no JSON object"),
        ("[" * 100_000, "after 0 values"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        list(products_in(write(tmp_path, text)))
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files(tmp_path, monkeypatch):
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(UserError, match="set WEBSHOP_DATA"):
        loader.data_folder()
    with pytest.raises(UserError, match="there is no folder"):
        loader.data_folder(tmp_path / "none")
    with pytest.raises(UserError, match="there is no items_shuffle"):
        list(products_in(tmp_path))
    (tmp_path / "items_shuffle.json").write_bytes(b'["\xff\xfe"]')
    with pytest.raises(UserError, match="not UTF-8"):
        list(products_in(tmp_path))
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    assert loader.data_folder() == tmp_path


def test_streams_equal_the_whole_file(tmp_path, monkeypatch):
    """With chunks of every small size, so that every value is cut somewhere."""
    values = [1, 23, "a\\\"b", None, {"x": [1.5, {"y": "é"}]}, [], "茶" * 9, -4e3]
    path = tmp_path / "values.json"
    for size in (1, 2, 3, 5, 64):
        monkeypatch.setattr(loader, "_CHUNK", size)
        for indent in (None, 2):
            path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
            assert list(stream_list(path)) == values
            path.write_text(json.dumps(dict(zip("abcdefgh", values)), indent=indent), encoding="utf-8")
            assert dict(stream_object(path)) == dict(zip("abcdefgh", values))


def test_the_real_set(real_products):
    assert len(real_products) == 1000
    assert sum(product.instruction is not None for product in real_products.values()) == 415
    assert sum(bool(product.human) for product in real_products.values()) == 13
