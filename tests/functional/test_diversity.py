from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.functional.diversity import (
    cond_entropy_n,
    distinct_n,
    diversity_report,
    entropy_n,
    length_report,
    msttr,
    repetition_share,
    token_report,
    unique_n,
    vocab_size,
)
from raft.functional.tokens import ends_sentence, tokenize

NUMBERS = ["", "token number one token number two token number three", ""]
PLACES = [
    "Alimentum is a non family-friendly restaurant near Burger King in the city centre.",
    "Alimentum is located in the city centre. It is not family-friendly.",
    "Or Orleans has a home.",
]
# Values that GEM-metrics gives for these texts (its n-gram tests).
NUMBERS_REPORT = {
    "distinct-1": 5 / 9,
    "vocab_size-1": 5,
    "unique-1": 3,
    "entropy-1": 2.113283334294875,
    "distinct-2": 0.75,
    "vocab_size-2": 6,
    "unique-2": 5,
    "entropy-2": 2.4056390622295662,
    "cond_entropy-2": 0.42443593632812127,
    "distinct-3": 1.0,
    "vocab_size-3": 7,
    "unique-3": 7,
    "entropy-3": 2.807354922057604,
    "cond_entropy-3": 0.486624565223814,
    "msttr-100": math.nan,
    "repetition-4": 0.0,
    "self_bleu-4": math.nan,  # two of the three texts have no word
}
# By hand: how many n-grams of each text stand in another one, none more often than there, out of all its n-grams.
# An order without a match counts as 0.1 of one; 13 and 6 tokens are shorter than the closest other text, 14 and 13.
PLACES_BLEU = (
    (9 / 14 * 5 / 13 * 3 / 12 * 2 / 11) ** 0.25,  # alimentum is a family-friendly in the city centre .
    (8 / 13 * 5 / 12 * 3 / 11 * 2 / 10) ** 0.25 * math.exp(1 - 14 / 13),  # its second "is" and "." do not count
    (2 / 6 * 0.1 / 5 * 0.1 / 4 * 0.1 / 3) ** 0.25 * math.exp(1 - 13 / 6),  # a .
)
PLACES_REPORT = {
    "distinct-1": 21 / 33,
    "vocab_size-1": 21,
    "unique-1": 12,
    "entropy-1": 4.233639952626228,
    "distinct-2": 25 / 30,
    "vocab_size-2": 25,
    "unique-2": 20,
    "entropy-2": 4.573557262275186,
    "cond_entropy-2": 0.22099272632218087,
    "distinct-3": 24 / 27,
    "vocab_size-3": 24,
    "unique-3": 21,
    "entropy-3": 4.532665279941249,
    "cond_entropy-3": -0.04089198233393895,
    "msttr-100": math.nan,
    "repetition-4": 0.0,
    "self_bleu-4": sum(PLACES_BLEU) / 3,
}
PLACES_NOPUNCT = {
    "distinct-1": 20 / 29,
    "vocab_size-1": 20,
    "unique-1": 12,
    "entropy-1": 4.21126073643228,
    "distinct-2": 22 / 26,
    "unique-2": 18,
    "entropy-2": 4.392747410448783,
    "cond_entropy-2": 0.1791851654044227,
    "distinct-3": 21 / 23,
    "cond_entropy-3": -0.04644297947538351,
}
CORPORA = st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=8)


@pytest.mark.parametrize(("texts", "expected"), [(NUMBERS, NUMBERS_REPORT), (PLACES, PLACES_REPORT)])
def test_report_equals_gem(texts: list[str], expected: dict[str, float]) -> None:
    report = diversity_report(texts)
    assert list(report) == list(expected)
    assert report == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True)


def test_nopunct_report_equals_gem() -> None:
    report = token_report([tokenize(text, keep_punctuation=False) for text in PLACES])
    assert {key: report[key] for key in PLACES_NOPUNCT} == pytest.approx(PLACES_NOPUNCT, abs=1e-9, rel=0)


def test_msttr_drops_the_last_partial_window() -> None:
    assert msttr([tokenize(text) for text in PLACES], 12) == 0.875  # 33 tokens, two windows
    assert msttr([tokenize(text, keep_punctuation=False) for text in PLACES], 12) == pytest.approx(11 / 12)
    assert msttr([["a", "b"], ["a"], ["c", "c", "a"]], 3) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert math.isnan(msttr([["a", "b"]], 3))


def test_ngrams_never_cross_texts() -> None:
    assert vocab_size([["a", "b"], ["c", "d"]], 2) == 2
    assert vocab_size([["a"], ["b"], []], 2) == 0


def test_empty_corpora_give_zeros() -> None:
    for texts in ([], [[]], [[], []]):
        report = token_report(texts)
        assert all(math.isnan(report.pop(name)) for name in ("msttr-100", "repetition-4", "self_bleu-4"))
        assert set(report.values()) == {0}


def test_one_word_over_and_over_has_no_entropy() -> None:
    report = diversity_report(["token token token token token token token"])
    assert (report["distinct-1"], report["distinct-2"], report["distinct-3"]) == (1 / 7, 1 / 6, 1 / 5)
    assert str(report["entropy-2"]) == str(report["cond_entropy-3"]) == "0.0"  # not -0.0


def ngrams_of(texts: list[list[str]], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))


@given(CORPORA, st.integers(1, 4))
def test_counts_and_entropies_by_brute_force(texts: list[list[str]], n: int) -> None:
    grams, contexts = ngrams_of(texts, n), ngrams_of(texts, n - 1)
    total = sum(grams.values())
    assert distinct_n(texts, n) == (len(grams) / total if total else 0)
    assert vocab_size(texts, n) == len(grams)
    assert unique_n(texts, n) == sum(count == 1 for count in grams.values())
    entropy = -sum(c / total * math.log2(c / total) for c in grams.values())
    assert entropy_n(texts, n) == pytest.approx(entropy, abs=1e-9)
    if n > 1:
        num_contexts = sum(contexts.values())
        conditional = -sum(
            c / total * math.log2((c / total) / (contexts[gram[:-1]] / num_contexts)) for gram, c in grams.items()
        )
        assert cond_entropy_n(texts, n) == pytest.approx(conditional, abs=1e-9)


def test_repetition_share_by_hand() -> None:
    # 1 2 1 2 1: bigrams 12 21 12 21, half of them seen before; 1 2 3: none; one token: no bigram, left out.
    assert repetition_share([[1, 2, 1, 2, 1], [1, 2, 3], [7]], n=2) == pytest.approx((0.5 + 0.0) / 2)
    assert repetition_share([["#"] * 104]) == pytest.approx(100 / 101)
    assert math.isnan(repetition_share([[1, 2, 3]]))


def test_lengths_by_hand() -> None:
    assert length_report([["a"] * 2, [], ["b"] * 7]) == pytest.approx(
        {
            "total_length": 9,
            "mean_pred_length": 3.0,
            "std_pred_length": math.sqrt((1 + 9 + 16) / 3),
            "median_pred_length": 2.0,
            "min_pred_length": 0,
            "max_pred_length": 7,
        }
    )
    with pytest.raises(ValueError, match="at least one text"):
        length_report([])


def test_wrong_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        distinct_n([["a"]], 0)
    with pytest.raises(ValueError, match="n of at least 2"):
        cond_entropy_n([["a"]], 1)
    with pytest.raises(ValueError, match="window"):
        msttr([["a"]], 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        repetition_share([["a"]], 0)


# Expected: NLTK's NLTKWordTokenizer, lower-cased, on the single sentence.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("Hello, world!", "hello , world !"),
        ("I don't, can't and won't; it's theirs.", "i do n't , ca n't and wo n't ; it 's theirs ."),
        ("She'll say they've been there, I'd bet.", "she 'll say they 've been there , i 'd bet ."),
        ("The dogs' bowls aren't John's.", "the dogs ' bowls are n't john 's ."),
        ('He said "no" (and "never").', "he said `` no '' ( and `` never '' ) ."),
        ('"Stop it," she cried.', "`` stop it , '' she cried ."),
        ("It costs $3,000.50 (10% off) at 10:30.", "it costs $ 3,000.50 ( 10 % off ) at 10:30 ."),
        ("Wait... what?! Yes--no.", "wait ... what ? ! yes -- no ."),
        (
            "I cannot; gimme that, I'm gonna go, wanna come?",
            "i can not ; gim me that , i 'm gon na go , wan na come ?",
        ),
        ("'Quoted' words in the '90s", "' quoted ' words in the ' 90s"),
        ("**Bold** and #tags @you", "* * bold * * and # tags @ you"),
        ("see https://example.org/a?b=1 now", "see https : //example.org/a ? b=1 now"),
        ("a\u2014b \u201cq\u201d it\u2019s", "a \u2014 b \u201c q \u201d it \u2019 s"),
        ("family-friendly state-of-the-art", "family-friendly state-of-the-art"),
    ],
)
def test_word_tokens_follow_the_treebank(text: str, expected: str) -> None:
    assert tokenize(text) == expected.split()


def test_every_sentence_loses_its_full_stop() -> None:
    text = (
        "Dr. Smith of Acme Inc. left at 5 p.m. The train, e.g. No. 5, was late."
        ' He said "no." Then he (Mr. J. Doe) slept.'
    )
    expected = (
        "dr. smith of acme inc. left at 5 p.m . the train , e.g. no. 5 , was late ."
        " he said `` no . '' then he ( mr. j. doe ) slept ."
    )
    assert tokenize(text) == expected.split()


@pytest.mark.parametrize(
    ("word", "following", "ends"),
    [
        ("centre.", "It", True),
        ("centre.", "", True),
        ("centre", "It", False),
        ("Mr.", "Smith", False),
        ("Mr.", "", True),
        ("(approx.", "12", False),
        ("U.S.", "troops", False),
        ("U.S.", "The", True),
        ("No.", "5", False),
        ("No.", "I", True),
        ("1.", "First", True),
        ("1.", "first", False),
        ("wait...", "What", False),
        ('end.")', "Next", True),
    ],
)
def test_sentence_ends(word: str, following: str, ends: bool) -> None:
    assert ends_sentence(word, following) is ends


# Chinese, Japanese, Thai (a consonant carries its vowel and tone marks), Burmese, Korean (which has spaces), a mix.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u4eca\u5929\u5f88\u597d\u3002", "\u4eca \u5929 \u5f88 \u597d \u3002"),
        ("\u30ab\u30ca\u306e\u6587\uff01", "\u30ab \u30ca \u306e \u6587 \uff01"),
        ("\u0e0a\u0e48\u0e2d\u0e07\u0e27\u0e48\u0e32\u0e07", "\u0e0a\u0e48 \u0e2d \u0e07 \u0e27\u0e48 \u0e32 \u0e07"),
        ("\u1019\u103c\u1014\u103a\u1019\u102c", "\u1019\u103c \u1014\u103a \u1019\u102c"),
        ("\ud55c\uad6d\uc5b4\ub294 \uc788\ub2e4.", "\ud55c\uad6d\uc5b4\ub294 \uc788\ub2e4 ."),
        ("GPT\u6a21\u578b: 3.14\u5143, don't.", "gpt \u6a21 \u578b : 3.14 \u5143 , do n't ."),
    ],
)
def test_scripts_without_spaces_are_split_into_characters(text: str, expected: str) -> None:
    assert tokenize(text) == expected.split()


def test_chinese_gets_the_numbers_of_its_characters() -> None:
    spaced = diversity_report(["\u6211 \u7231 \u4f60", "\u6211 \u7231 \u6211"])
    assert diversity_report(["\u6211\u7231\u4f60", "\u6211\u7231\u6211"]) == pytest.approx(spaced, nan_ok=True)
    assert spaced["distinct-1"] == 3 / 6
