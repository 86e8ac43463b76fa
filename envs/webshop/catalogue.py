"""A shop: its products, its search engine, its prices and its goals. Made once, shared by all episodes, never changed by them."""

from __future__ import annotations

import functools
import pathlib
import random
from collections.abc import Iterable, Sequence

from envs.webshop import loader, nouns, search
from envs.webshop.goals import KINDS, draw_prices, goals_of
from envs.webshop.products import Goal, Product
from envs.webshop.store import StoredCatalogue, open_store
from epo_jax.errors import UserError

PRICE_SEED = 233
# A product file of more bytes than this is not held in memory.
IN_MEMORY = 100_000_000


class Catalogue:
    """Products in a fixed order, with what an episode needs of them.

    products: in the original file's order. find_nouns: see nouns.py. seed: of the prices within ranges and of the price limits.
    """

    def __init__(self, products: Iterable[Product], find_nouns: nouns.Nouns = nouns.light, seed: int = PRICE_SEED) -> None:
        self.products = list(products)
        if not self.products:
            raise UserError("a catalogue without products: nothing can be searched or bought")
        self._by_asin = {product.asin: product for product in self.products}
        self.nouns = functools.lru_cache(maxsize=65_536)(find_nouns)
        self._index = search.build(map(search.document, self.products))
        rng = random.Random(seed)
        self.prices = draw_prices(self.products, rng)
        self._after_prices = rng.getstate()
        self._goals: dict[str, list[Goal]] = {}
        self.search = functools.lru_cache(maxsize=4_096)(self._search)

    def product(self, asin: str) -> Product:
        return self._by_asin[asin]

    def _search(self, text: str) -> tuple[str, ...]:
        """The asins of at most 50 products, best first."""
        return tuple(self.products[number].asin for number in self._index.search(text))

    def goals(self, kind: str) -> Sequence[Goal]:
        """All goals of a kind (synthetic, human), in the original's order."""
        if kind not in KINDS:
            raise UserError(f"there are no goals {kind!r}: use one of {', '.join(KINDS)}")
        if kind not in self._goals:
            rng = random.Random()
            rng.setstate(self._after_prices)
            self._goals[kind] = goals_of(kind, self.products, self.prices, rng)
        return self._goals[kind]


@functools.lru_cache(maxsize=4)
def open_folder(folder: pathlib.Path, noun_kind: str = "auto", seed: int = PRICE_SEED) -> Catalogue | StoredCatalogue:
    """The catalogue in a folder of the original files (loader.py): in memory for small sets, on disk above IN_MEMORY bytes."""
    path = loader.find_file(folder, loader.PRODUCTS)
    if path is not None and path.stat().st_size > IN_MEMORY:
        return open_store(folder, nouns.choose(noun_kind), seed)
    return Catalogue(loader.products_in(folder), nouns.choose(noun_kind), seed)
