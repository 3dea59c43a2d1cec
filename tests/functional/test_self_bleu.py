from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from raft.functional.self_bleu import self_bleu

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=9), max_size=7)


def nltk_self_bleu(texts: list[list[str]], max_n: int) -> float:
    """Every text against all others by NLTK; texts without a token are left out."""
    filled = [text for text in texts if text]
    weights, smoothing = (1 / max_n,) * max_n, SmoothingFunction().method1
    scores = [
        sentence_bleu(filled[:i] + filled[i + 1 :], text, weights=weights, smoothing_function=smoothing)
        for i, text in enumerate(filled)
    ]
    return sum(scores) / len(scores)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 5))
def test_equals_nltk(texts: list[list[str]], max_n: int) -> None:
    found = self_bleu(texts, max_n=max_n)
    if sum(map(bool, texts)) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(nltk_self_bleu(texts, max_n), abs=1e-12)


def test_equal_texts_have_one_and_strangers_nothing() -> None:
    text = ["a", "b", "c", "d", "e"]
    assert self_bleu([text] * 5) == pytest.approx(1.0)
    assert self_bleu([["a", "b"], ["c", "d"], ["e"]]) == 0.0


def test_texts_are_sampled_with_the_seed() -> None:
    texts = [[f"{(i * i) % 7}", f"{i % 3}", f"{i % 5}"] for i in range(40)]
    some = self_bleu(texts, num_texts=10, seed=1)
    assert self_bleu(texts, num_texts=10, seed=1) == some
    assert len({self_bleu(texts, num_texts=10, seed=seed) for seed in range(5)}) > 1
    assert self_bleu(texts, num_texts=40, seed=1) == self_bleu(texts, num_texts=None) == self_bleu(texts)
    # Fewer references match less.
    assert some < self_bleu(texts)
