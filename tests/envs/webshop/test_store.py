"""The catalogue on disk answers as the one in memory does."""

from __future__ import annotations

import json
import os

import pytest

from envs.webshop import catalogue, generator, nouns, store
from envs.webshop.catalogue import Catalogue, open_folder
from envs.webshop.goals import KINDS
from envs.webshop.store import StoredCatalogue, build, open_store
from epo_jax.errors import UserError


@pytest.fixture
def products(monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 100)  # several blocks, the last one not full
    return generator.generate_products(3)


def test_same_answers(products, tmp_path):
    build(products, tmp_path / "index", 5, {})
    stored, in_memory = StoredCatalogue(tmp_path / "index", nouns.light), Catalogue(products, nouns.light, 5)
    for product in products:
        assert stored.product(product.asin) == product and stored.prices[product.asin] == in_memory.prices[product.asin]
        assert stored.search(product.title) == in_memory.search(product.title)
    assert stored.search("nothing like it") == ()
    assert list(stored.goals("synthetic")) == list(in_memory.goals("synthetic"))
    with pytest.raises(KeyError):
        stored.product("P0")


@pytest.mark.slow
def test_same_answers_on_the_real_set(real_products, shared, tmp_path):
    build(real_products.values(), tmp_path / "index", 5, {})
    stored, in_memory = StoredCatalogue(tmp_path / "index", nouns.light), Catalogue(real_products.values(), nouns.light, 5)
    for line in (shared / "reference" / "webshop_lucene_rankings.jsonl").open():
        query = json.loads(line)["query"]
        assert stored.search(query) == in_memory.search(query)
    for kind in KINDS:
        assert list(stored.goals(kind)) == list(in_memory.goals(kind))
    assert all(stored.product(asin) == product for asin, product in real_products.items())


def write(folder, name="Mug"):
    record = {
        "asin": "B1", "name": name, "full_description": "", "small_description": "", "category": "c", "query": "q",
        "product_category": "x", "customization_options": "", "pricing": "$5 $9",
    }  # fmt: skip
    (folder / "items_shuffle.json").write_text(json.dumps([record]))


def test_built_once_and_again_when_the_files_change(tmp_path, monkeypatch):
    monkeypatch.delenv("WEBSHOP_INDEX", raising=False)
    write(tmp_path)
    assert open_store(tmp_path, nouns.light, 1).product("B1").title == "Mug"
    monkeypatch.setattr(store, "build", lambda *arguments: pytest.fail("built again"))
    open_store(tmp_path, nouns.light, 1)
    monkeypatch.undo()
    write(tmp_path, "Another mug")
    monkeypatch.setenv("WEBSHOP_INDEX", str(tmp_path / "elsewhere" / "index"))
    assert open_store(tmp_path, nouns.light, 1).product("B1").title == "Another mug"
    monkeypatch.delenv("WEBSHOP_INDEX")
    assert open_store(tmp_path, nouns.light, 1).product("B1").title == "Another mug"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "epo_jax_index", "items_shuffle.json"]


def test_a_large_set_is_stored(tmp_path, monkeypatch):
    monkeypatch.delenv("WEBSHOP_INDEX", raising=False)
    monkeypatch.setattr(catalogue, "IN_MEMORY", 10)
    write(tmp_path)
    assert isinstance(open_folder(tmp_path, "light"), StoredCatalogue)


def test_failures_are_told_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBSHOP_INDEX", str(tmp_path / "index"))
    (tmp_path / "items_shuffle.json").write_text('[{"asin": "B1"')
    with pytest.raises(UserError, match="breaks off"):
        open_store(tmp_path, nouns.light, 1)
    (tmp_path / "items_shuffle.json").write_text("[]")
    with pytest.raises(UserError, match="no products"):
        open_store(tmp_path, nouns.light, 1)
    assert os.listdir(tmp_path) == ["items_shuffle.json"]
    write(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEBSHOP_INDEX", str(tmp_path / "file" / "index"))
    with pytest.raises(UserError, match="set WEBSHOP_INDEX to a folder of your own"):
        open_store(tmp_path, nouns.light, 1)
