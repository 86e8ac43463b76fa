"""The shop's search engine: BM25 as Lucene computes it, over an inverted index.

Score of a document: Σ over the query's words of `idf · f / (f + k1 (1 − b + b · length / mean length))` with
`idf = ln(1 + (N − n + 0.5) / (n + 0.5))`, k1 0.9, b 0.4 (Robertson and Zaragoza 2009; Kamphuis et al. 2020). Lucene keeps a
document's length in one byte, exactly up to 40 and rounded down beyond, and that decides many close calls.

The index is kept as flat arrays (`Index`), so that it can lie in memory or be mapped from files. The package bm25s has the same formula;
but importing it starts a JAX backend where JAX is installed, which an environment must not do, and it knows no rounded lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import Stemmer

from envs.webshop.products import Product

K1, B = 0.9, 0.4
MAX_HITS = 50

# Lucene's English stop words.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was will with".split()
)
# Words as Unicode's text segmentation (UAX 29) finds them, as far as it matters for listings: letters and digits, held together by
# an apostrophe, a full stop or a colon between letters, and by a full stop, a comma or an apostrophe between digits.
_WORD = re.compile(r"\w+(?:(?:(?<=[^\W\d])[':.\u2019](?=[^\W\d])|(?<=\d)[.,'](?=\d))\w+)*")


@functools.lru_cache(maxsize=262_144)
def _stem(word: str) -> str:
    """A word's Porter stem; "" for a stop word. One or two letters stay as they are."""
    word = word.replace("\u2019", "'").removesuffix("'s")
    return "" if word in STOP_WORDS else word if len(word) <= 2 else _porter().stemWord(word)


@functools.cache
def _porter() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("porter", 0)


def analyse(text: str) -> list[str]:
    """The index words of a text: lower case, without stop words and possessive endings, stemmed."""
    return [stem for word in _WORD.findall(text.lower()) if (stem := _stem(word))]


def document(product: Product) -> str:
    """What is searched of a product: title, description, first bullet, and options ("size: s, m, and color: red")."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join((product.title, product.description, product.bullets[0] if product.bullets else "", options)).lower()


def one_byte_length(length: int) -> int:
    """A document's length as it comes back from Lucene's one byte (SmallFloat's 4-bit floating point, from 24 on)."""
    if length < 24:
        return length
    rest = length - 24
    dropped = max(rest.bit_length() - 4, 0)
    return 24 + (rest >> dropped << dropped)


@dataclasses.dataclass(frozen=True, slots=True)
class Index:
    """An inverted index of N documents and V words with P postings.

    words: word -> number. starts [V + 1]: where each word's postings begin. documents [P] int32: rising within a word.
    scores [P] float32: what the word adds to the document's score. size: N.
    """

    words: Mapping[str, int]
    starts: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    size: int

    def search(self, text: str, hits: int = MAX_HITS) -> list[int]:
        """Numbers of the best documents, best first, at most `hits`; of equal ones the first. Words that repeat count twice."""
        totals = np.zeros(self.size)
        for word, count in Counter(analyse(text)).items():
            number = self.words.get(word)
            if number is None:
                continue
            start, end = int(self.starts[number]), int(self.starts[number + 1])
            totals[self.documents[start:end]] += count * self.scores[start:end]
        totals = totals.astype(np.float32)  # as Lucene: sums in double precision, ranks by single
        if self.size > 4 * hits:
            # Everything not below the last place, then a stable sort of those few.
            threshold = max(float(np.partition(totals, self.size - hits)[self.size - hits]), np.finfo(np.float32).tiny)
            candidates = np.flatnonzero(totals >= threshold)
        else:
            candidates = np.flatnonzero(totals > 0)
        order = np.argsort(-totals[candidates], kind="stable")[:hits]
        return candidates[order].tolist()


def build(texts: Iterable[str]) -> Index:
    """The index of documents in memory."""
    words: dict[str, int] = {}
    word_numbers: list[int] = []
    documents: list[int] = []
    frequencies: list[int] = []
    lengths: list[int] = []
    for number, text in enumerate(texts):
        counts = Counter(analyse(text))
        lengths.append(sum(counts.values()))
        for word, count in counts.items():
            word_numbers.append(words.setdefault(word, len(words)))
            documents.append(number)
            frequencies.append(count)
    of_word = np.asarray(word_numbers, dtype=np.int64)
    order = np.argsort(of_word, kind="stable")
    per_word = np.bincount(of_word, minlength=len(words))
    starts = np.concatenate(([0], np.cumsum(per_word)))
    documents_by_word = np.asarray(documents, dtype=np.int32)[order]
    scores = np.repeat(word_weights(per_word, len(lengths)), per_word) * saturation(
        np.asarray(frequencies, dtype=np.float64)[order], length_norms(lengths)[documents_by_word]
    )
    return Index(words, starts, documents_by_word, scores.astype(np.float32), len(lengths))


def word_weights(per_word: np.ndarray, size: int) -> np.ndarray:
    """idf [V] of words that stand in `per_word` [V] of `size` documents."""
    return np.log1p((size - per_word + 0.5) / (per_word + 0.5))


def length_norms(lengths: Iterable[int]) -> np.ndarray:
    """k1 (1 − b + b · length / mean length) [N], lengths rounded to one byte, the mean taken exactly and over non-empty documents."""
    exact = np.fromiter(lengths, dtype=np.int64)
    filled = max(int(np.count_nonzero(exact)), 1)
    mean = max(float(exact.sum()) / filled, math.ulp(0.0)) if exact.sum() else 1.0
    rounded = np.fromiter(map(one_byte_length, exact.tolist()), dtype=np.float64, count=len(exact))
    return K1 * (1 - B + B * rounded / mean)


def saturation(frequencies: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """f / (f + norm): what of its weight a word gives that stands f times in a document."""
    return frequencies / (frequencies + norms)
