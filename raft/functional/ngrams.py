"""Token lists to numbers, and the n-grams in them: what the diversity metrics count.

N-grams never cross texts. Legend: T texts, N tokens in all, P n-grams in all, V different tokens or n-grams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Corpus = Sequence[Sequence[Hashable]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedCorpus:
    """Texts as numbers: ``ids`` 0..V-1 of all tokens in order, (N,); ``lengths`` of the texts, (T,); V."""

    ids: Integers
    lengths: Integers
    num_types: int

    @property
    def text_of(self) -> Integers:
        """The text that each token belongs to, (N,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def left(self) -> Integers:
        """For every token, how many tokens its text has left, itself included, (N,)."""
        return np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.ids))


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one order.

    starts: position in the corpus of each n-gram's first token, (P,), ascending.
    types: number of each n-gram, equal for equal ones, (P,).
    counts: occurrences of each different n-gram, (V,).
    context_counts: occurrences of the n-gram's first n-1 tokens, (V,); for n=1 the number of tokens.
    num_contexts: (n-1)-grams in the corpus, those at a text's end included.
    """

    starts: Integers
    types: Integers
    counts: Integers
    context_counts: Integers
    num_contexts: int

    @property
    def total(self) -> int:
        """P."""
        return len(self.starts)


def encode(texts: Corpus) -> EncodedCorpus:
    """Number the tokens in the order of their first appearance."""
    numbers: defaultdict[Hashable, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new token gets the next number
    ids = np.fromiter(map(numbers.__getitem__, chain.from_iterable(texts)), dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    return EncodedCorpus(ids, lengths, len(numbers))


def ngram_orders(corpus: EncodedCorpus, max_n: int) -> Iterator[Ngrams]:
    """The n-grams of every order 1..max_n. O(N log N) per order.

    Raises ValueError for max_n below 1.
    """
    if max_n < 1:
        raise ValueError(f"n must be at least 1, got {max_n}")
    left = corpus.left
    starts = np.arange(len(corpus.ids))
    types, counts = np.zeros(len(corpus.ids), np.int64), np.array([len(corpus.ids)], np.int64)
    for n in range(1, max_n + 1):
        num_contexts = int(counts.sum())
        fits = left[starts] >= n
        starts, contexts = starts[fits], types[fits]
        # An n-gram is its (n-1)-gram's number and its last token: two numbers below N, so no overflow.
        keys = contexts * corpus.num_types + corpus.ids[starts + n - 1]
        uniques, types, new_counts = np.unique(keys, return_inverse=True, return_counts=True)
        context_counts = counts[uniques // max(corpus.num_types, 1)]
        counts = new_counts.astype(np.int64)
        yield Ngrams(starts, types, counts, context_counts, num_contexts)


def ngrams(texts: Corpus, n: int) -> Ngrams:
    """The n-grams of one order."""
    *_, last = ngram_orders(encode(texts), n)
    return last
