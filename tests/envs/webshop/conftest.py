"""The real catalogue, the original's transcripts, and the nouns that spaCy finds in the real titles."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Callable

import pytest

from envs.webshop.loader import products_in
from envs.webshop.products import Product

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def webshop_data(shared: pathlib.Path) -> pathlib.Path:
    return shared / "data" / "webshop"


@pytest.fixture(scope="session")
def real_products(webshop_data) -> dict[str, Product]:
    """The 1,000 products by asin, in the file's order."""
    return {product.asin: product for product in products_in(webshop_data)}


@pytest.fixture(scope="session")
def transcripts(shared: pathlib.Path) -> list[dict]:
    with gzip.open(shared / "reference" / "webshop_transcripts.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="session")
def spacy_nouns(real_products) -> Callable[[str], list[str]]:
    """What spaCy's en_core_web_sm 3.8 calls nouns in the titles of the transcripts' products (spacy_nouns.json: asin -> words)."""
    table = json.loads((HERE / "spacy_nouns.json").read_text())
    by_title = {real_products[asin].title: words for asin, words in table.items()}
    return by_title.__getitem__
