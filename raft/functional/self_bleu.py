"""Self-BLEU: how much each text resembles the others (Zhu et al. 2018, Texygen, arXiv 1802.01886).

BLEU-4 of every text with all the others as its references, averaged: 1 where all are alike, near 0 where none
shares a word with another. A library would count all references anew for every text. The references of two texts
differ in one text only, so it is enough to know, for every n-gram, the two texts in which it occurs most: one pass
over the corpus in place of T passes, and the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raft.functional.ngrams import Corpus, EncodedCorpus, Integers, Ngrams, encode, ngram_orders

NUM_TEXTS = 500  # the value grows with the number of references, so that a fixed number keeps runs comparable
_EPSILON = 0.1  # in place of no match at all: method 1 of Chen and Cherry (2014), as NLTK's smoothing has it

Floats = NDArray[np.float64]


def self_bleu(texts: Corpus, *, max_n: int = 4, num_texts: int | None = NUM_TEXTS, seed: int = 0) -> float:
    """Mean BLEU of each text against all others, 0..1; NaN for fewer than two texts.

    Sentence BLEU as in NLTK: equal weights of orders 1..max_n, smoothing method 1, brevity penalty by the closest
    length. A text without tokens has no BLEU and is left out.

    Args:
        texts: word tokens or token ids.
        num_texts: texts to sample without replacement, with ``seed``; None, or more than there are, takes all.
    """
    filled = [text for text in texts if len(text)]
    if num_texts is not None and len(filled) > num_texts:
        chosen = np.random.default_rng(seed).choice(len(filled), num_texts, replace=False)
        filled = [filled[i] for i in np.sort(chosen)]
    if len(filled) < 2:
        return float("nan")
    corpus = encode(filled)
    text_of = corpus.text_of
    log_precisions = np.zeros(len(filled))
    matches_anything = np.zeros(len(filled), dtype=bool)
    for n, order in enumerate(ngram_orders(corpus, max_n), start=1):
        matches = _clipped_matches(order, text_of, len(filled))
        if n == 1:
            matches_anything = matches > 0
        totals = np.maximum(corpus.lengths - n + 1, 1)
        log_precisions += np.log(np.where(matches > 0, matches, _EPSILON) / totals) / max_n
    bleu = np.where(matches_anything, np.exp(log_precisions) * _brevity_penalties(corpus), 0.0)
    return float(bleu.mean())


def _clipped_matches(order: Ngrams, text_of: Integers, num_texts: int) -> Integers:
    """For every text, its n-grams that some other text has too, each at most as often as there, (T,)."""
    # (n-gram, text) pairs and how often: sorted by n-gram, then by count.
    pairs, counts = np.unique(order.types * num_texts + text_of[order.starts], return_counts=True)
    types, texts = np.divmod(pairs, num_texts)
    by_count = np.lexsort((counts, types))
    types, texts, counts = types[by_count], texts[by_count], counts[by_count]
    last = np.flatnonzero(np.diff(types, append=-1))  # of each n-gram, the text that has it most
    most = np.zeros(len(order.counts), dtype=np.int64)
    second = np.zeros(len(order.counts), dtype=np.int64)
    most[types[last]] = counts[last]
    shared = last[(last > 0) & (types[last - 1] == types[last])]
    second[types[shared]] = counts[shared - 1]
    is_most = np.zeros(len(types), dtype=bool)
    is_most[last] = True
    elsewhere = np.where(is_most, second[types], most[types])
    return np.bincount(texts, weights=np.minimum(counts, elsewhere), minlength=num_texts).astype(np.int64)


def _brevity_penalties(corpus: EncodedCorpus) -> Floats:
    """exp(1 - r / c) where the closest other length r (the shorter of two) exceeds the text's own c, (T,)."""
    lengths = corpus.lengths
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    below = np.append(-np.inf, ordered[:-1])
    above = np.append(ordered[1:], np.inf)
    closest = np.where(ordered - below <= above - ordered, below, above)
    penalties = np.ones(len(lengths))
    penalties[order] = np.exp(np.minimum(0.0, 1.0 - closest / ordered))
    return penalties
