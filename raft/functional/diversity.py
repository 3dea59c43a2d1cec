"""How varied a set of responses is: n-gram statistics with the definitions and names of GEM-metrics.

Every function takes token lists, one per text; n-grams never cross texts, counts are over the whole corpus.
Falling distinct-2 or rising repetition is the usual first sign that a policy games its reward model.
All but MSTTR depend on how much text there is: compare equal numbers of responses of similar length.
Entropies are in bits. Legend: T texts, N tokens in all, V different tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raft.functional.ngrams import Corpus, EncodedCorpus, Ngrams, encode, ngram_orders, ngrams
from raft.functional.self_bleu import NUM_TEXTS, self_bleu
from raft.functional.tokens import tokenize

REPEATED_N = 4  # a phrase of four words that comes again is no accident of grammar


def distinct_n(texts: Corpus, n: int) -> float:
    """Different n-grams / n-grams, 0 where there are none."""
    return _distinct(ngrams(texts, n))


def vocab_size(texts: Corpus, n: int = 1) -> int:
    """Number of different n-grams."""
    return len(ngrams(texts, n).counts)


def unique_n(texts: Corpus, n: int) -> int:
    """Number of n-grams that occur exactly once in the corpus."""
    return _unique(ngrams(texts, n))


def entropy_n(texts: Corpus, n: int) -> float:
    """Shannon entropy of the n-gram distribution in bits, 0 for an empty corpus."""
    return _entropy(ngrams(texts, n))


def cond_entropy_n(texts: Corpus, n: int) -> float:
    """Entropy in bits of a token given the n-1 before it: ``-sum p(x, y) log2(p(x, y) / p(x))``.

    p(x, y) and p(x) are each normalised by their own total, as GEM does, so small corpora can come out
    slightly negative. 0 where there is no n-gram.
    """
    if n < 2:
        raise ValueError(f"a conditional entropy needs n of at least 2, got {n}")
    return _cond_entropy(ngrams(texts, n))


def msttr(texts: Corpus, window: int = 100) -> float:
    """Mean segmental type-token ratio (Johnson 1944) over consecutive windows of the concatenated texts.

    The last, partial window is dropped; NaN where not one window is full. Needs a window of at least 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return _msttr(encode(texts), window)


def repetition_share(texts: Corpus, n: int = REPEATED_N) -> float:
    """Mean over the texts of the share of n-grams that occurred earlier in the same text, 0..1.

    texts: word tokens or token ids. A text shorter than n tokens has no n-gram and is left out; NaN where all
    are. Text that fills up with '#' scores near 1.
    """
    corpus = encode(texts)
    *_, order = ngram_orders(corpus, n)
    return _repetition_share(corpus, order)


def diversity_report(
    texts: Sequence[str], *, self_bleu_texts: int | None = NUM_TEXTS, seed: int = 0
) -> dict[str, float]:
    """All metrics of raw texts, under GEM's names where GEM has them.

    ``distinct-1`` ... ``cond_entropy-3``, ``msttr-100``, ``repetition-4``, and ``self_bleu-4`` of ``self_bleu_texts``
    texts sampled with ``seed``.
    """
    return token_report([tokenize(text) for text in texts], self_bleu_texts=self_bleu_texts, seed=seed)


def token_report(
    texts: Corpus, window: int = 100, *, self_bleu_texts: int | None = NUM_TEXTS, seed: int = 0
) -> dict[str, float]:
    """The metrics of ``diversity_report`` for texts that are tokenised already."""
    corpus = encode(texts)
    report: dict[str, float] = {}
    for n, order in enumerate(ngram_orders(corpus, REPEATED_N), start=1):
        if n < REPEATED_N:
            report |= _order_report(order, n)
    report[f"msttr-{window}"] = _msttr(corpus, window)
    report[f"repetition-{REPEATED_N}"] = _repetition_share(corpus, order)
    report["self_bleu-4"] = self_bleu(texts, num_texts=self_bleu_texts, seed=seed)
    return report


def length_report(texts: Corpus) -> dict[str, float]:
    """Lengths of the texts in tokens under GEM's names: ``mean_pred_length``, ``std_pred_length``, ...

    Raises ValueError where there is no text.
    """
    lengths = np.array([len(text) for text in texts])
    if not len(lengths):
        raise ValueError("lengths need at least one text")
    return {
        "total_length": int(lengths.sum()),
        "mean_pred_length": float(lengths.mean()),
        "std_pred_length": float(lengths.std()),
        "median_pred_length": float(np.median(lengths)),
        "min_pred_length": int(lengths.min()),
        "max_pred_length": int(lengths.max()),
    }


def _order_report(order: Ngrams, n: int) -> dict[str, float]:
    report: dict[str, float] = {
        f"distinct-{n}": _distinct(order),
        f"vocab_size-{n}": len(order.counts),
        f"unique-{n}": _unique(order),
        f"entropy-{n}": _entropy(order),
    }
    return report | ({f"cond_entropy-{n}": _cond_entropy(order)} if n > 1 else {})


def _msttr(corpus: EncodedCorpus, window: int) -> float:
    num_windows = len(corpus.ids) // window
    if num_windows == 0:
        return float("nan")
    windows = np.sort(corpus.ids[: num_windows * window].reshape(num_windows, window), axis=1)
    return float(1 + (windows[:, 1:] != windows[:, :-1]).sum(1).mean()) / window


def _repetition_share(corpus: EncodedCorpus, order: Ngrams) -> float:
    num_texts, num_types = len(corpus.lengths), len(order.counts)
    text_of = corpus.text_of[order.starts]
    totals = np.bincount(text_of, minlength=num_texts)
    different = np.bincount(np.unique(text_of * num_types + order.types) // max(num_types, 1), minlength=num_texts)
    long_enough = totals > 0
    return float((1 - different[long_enough] / totals[long_enough]).mean()) if long_enough.any() else float("nan")


def _distinct(order: Ngrams) -> float:
    return len(order.counts) / order.total if order.total else 0.0


def _unique(order: Ngrams) -> int:
    return int((order.counts == 1).sum())


def _entropy(order: Ngrams) -> float:
    shares = order.counts / max(order.total, 1)
    return abs(float((shares * np.log2(shares)).sum()))  # abs: the sum is <= 0, and -0.0 reads badly


def _cond_entropy(order: Ngrams) -> float:
    shares = order.counts / max(order.total, 1)
    context_shares = order.context_counts / max(order.num_contexts, 1)
    return 0.0 - float((shares * np.log2(shares / context_shares)).sum())
