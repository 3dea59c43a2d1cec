"""How varied a set of responses is: n-gram statistics with the definitions and names of GEM-metrics.

Every function takes token lists, one per text; n-grams never cross texts, counts are over the whole corpus.
Falling distinct-2 or rising repetition is the usual first sign that a policy games its reward model.
Entropies are in bits. Legend: T texts, N tokens in all, V different tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from raft.functional.tokens import tokenize

Corpus = Sequence[Sequence[Hashable]]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class NgramCounts:
    """Frequencies of one order of n-grams.

    counts: occurrences of each different n-gram, (types,).
    context_counts: occurrences of the n-gram's first n-1 tokens, (types,); for n=1 the number of tokens.
    num_contexts: (n-1)-grams in the corpus, those at a text's end included.
    """

    counts: Counts
    context_counts: Counts
    num_contexts: int

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def count_ngrams(texts: Corpus, max_n: int) -> list[NgramCounts]:
    """Count the n-grams of every order 1..max_n: entry i holds order i+1. O(N log N) per order."""
    if max_n < 1:
        raise ValueError(f"n must be at least 1, got {max_n}")
    tokens, num_types = _token_ids(texts)
    room = _tokens_to_text_end(texts)
    starts = np.arange(len(tokens))
    types, counts = np.zeros(len(tokens), np.int64), np.array([len(tokens)], np.int64)
    orders = []
    for n in range(1, max_n + 1):
        num_contexts = int(counts.sum())
        fits = room[starts] >= n
        starts, contexts = starts[fits], types[fits]
        # An n-gram is its (n-1)-gram's number and its last token: two numbers below N, so no overflow.
        keys = contexts * num_types + tokens[starts + n - 1]
        uniques, types, new_counts = np.unique(keys, return_inverse=True, return_counts=True)
        context_counts = counts[uniques // num_types] if num_types else new_counts
        counts = new_counts.astype(np.int64)
        orders.append(NgramCounts(counts, context_counts, num_contexts))
    return orders


def distinct_n(texts: Corpus, n: int) -> float:
    """Different n-grams / n-grams, 0 where there are none."""
    return _distinct(count_ngrams(texts, n)[-1])


def vocab_size(texts: Corpus, n: int = 1) -> int:
    """Number of different n-grams."""
    return len(count_ngrams(texts, n)[-1].counts)


def unique_n(texts: Corpus, n: int) -> int:
    """Number of n-grams that occur exactly once in the corpus."""
    return _unique(count_ngrams(texts, n)[-1])


def entropy_n(texts: Corpus, n: int) -> float:
    """Shannon entropy of the n-gram distribution in bits, 0 for an empty corpus."""
    return _entropy(count_ngrams(texts, n)[-1])


def cond_entropy_n(texts: Corpus, n: int) -> float:
    """Entropy in bits of a token given the n-1 before it: ``-sum p(x, y) log2(p(x, y) / p(x))``.

    p(x, y) and p(x) are each normalised by their own total, as GEM does, so small corpora can come out
    slightly negative. 0 where there is no n-gram.
    """
    if n < 2:
        raise ValueError(f"a conditional entropy needs n of at least 2, got {n}")
    return _cond_entropy(count_ngrams(texts, n)[-1])


def msttr(texts: Corpus, window: int = 100) -> float:
    """Mean segmental type-token ratio (Johnson 1944) over consecutive windows of the concatenated texts.

    The last, partial window is dropped; NaN where not one window is full.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    tokens = list(chain.from_iterable(texts))
    num_windows = len(tokens) // window
    if num_windows == 0:
        return float("nan")
    num_types = sum(len(set(tokens[i * window : (i + 1) * window])) for i in range(num_windows))
    return num_types / (num_windows * window)


def repetition_share(texts: Corpus, n: int = 4) -> float:
    """Mean over the texts of the share of n-grams that occurred earlier in the same text, 0..1.

    texts: word tokens or token ids. A text shorter than n tokens has no n-gram and is left out; NaN where all
    are. Text that fills up with '#' scores near 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    shares = []
    for tokens in texts:
        num_ngrams = len(tokens) - n + 1
        if num_ngrams > 0:
            ngrams = {tuple(tokens[start : start + n]) for start in range(num_ngrams)}
            shares.append(1 - len(ngrams) / num_ngrams)
    return sum(shares) / len(shares) if shares else float("nan")


def diversity_report(texts: Sequence[str]) -> dict[str, float]:
    """All metrics of raw texts under GEM's names: ``distinct-1`` ... ``cond_entropy-3``, ``msttr-100``."""
    return token_report([tokenize(text) for text in texts])


def token_report(texts: Corpus, window: int = 100) -> dict[str, float]:
    """The metrics of ``diversity_report`` for texts that are tokenised already."""
    report: dict[str, float] = {}
    for n, ngrams in enumerate(count_ngrams(texts, 3), start=1):
        report[f"distinct-{n}"] = _distinct(ngrams)
        report[f"vocab_size-{n}"] = len(ngrams.counts)
        report[f"unique-{n}"] = _unique(ngrams)
        report[f"entropy-{n}"] = _entropy(ngrams)
        if n > 1:
            report[f"cond_entropy-{n}"] = _cond_entropy(ngrams)
    report[f"msttr-{window}"] = msttr(texts, window)
    return report


def _token_ids(texts: Corpus) -> tuple[Counts, int]:
    """Tokens of all texts as numbers 0..V-1, (N,), and V."""
    vocabulary: dict[Hashable, int] = {}
    ids = [vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text]
    return np.array(ids, dtype=np.int64), len(vocabulary)


def _tokens_to_text_end(texts: Corpus) -> Counts:
    """For every token, how many tokens its text has left, itself included, (N,)."""
    return np.array([left for text in texts for left in range(len(text), 0, -1)], dtype=np.int64)


def _distinct(ngrams: NgramCounts) -> float:
    return len(ngrams.counts) / ngrams.total if ngrams.total else 0.0


def _unique(ngrams: NgramCounts) -> int:
    return int((ngrams.counts == 1).sum())


def _entropy(ngrams: NgramCounts) -> float:
    shares = ngrams.counts / max(ngrams.total, 1)
    return abs(float((shares * np.log2(shares)).sum()))  # abs: the sum is <= 0, and -0.0 reads badly


def _cond_entropy(ngrams: NgramCounts) -> float:
    shares = ngrams.counts / max(ngrams.total, 1)
    context_shares = ngrams.context_counts / max(ngrams.num_contexts, 1)
    return 0.0 - float((shares * np.log2(shares / context_shares)).sum())
