from __future__ import annotations

import re

import pytest

from raft.functional.text_features import MARKUP, Lengths, feature_patterns, response_features, split_words

LENGTHS = Lengths(5, 200)


def features(text: str, kind: str, finish_reason: str = "eos") -> set[str]:
    return response_features(text, finish_reason, LENGTHS)[kind]


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert split_words("Don't stop, it\u2019s 3.5!") == ["don't", "stop", "it\u2019s", "3", "5"]
    assert split_words("\u4f60\u597d world") == ["\u4f60", "\u597d", "world"]
    assert split_words("snake_case") == ["snake", "case"]
    assert split_words("\u041f\u0440\u0438\u0432\u0435\u0442") == ["\u043f\u0440\u0438\u0432\u0435\u0442"]
    assert split_words("") == []


def test_phrases_openings_and_endings_by_hand() -> None:
    assert features("A b. C", "phrase") == {"a", "b", "c", "a b", "b c", "a b c"}
    assert features("a b c d e", "opening") == {"a", "a b", "a b c", "a b c d"}
    assert features("a b c d e!", "ending") == {"e", "d e", "c d e", "b c d e"}


def test_a_thing_counts_once_in_a_response() -> None:
    assert features("##### # ##", "character") == {"#"}
    assert features("a \u00e9 1", "character") == set()  # Latin letters, digits and spaces are no signs
    assert features("\u043f\u0440 \u0433 \u4f60", "character") == {"CYRILLIC letters", "CJK letters"}
    assert features("\U0001f600\x1b", "character") == {"\U0001f600", "\x1b"}


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("# Title\ntext", {"heading", "line break"}),
        ("issue #5", set()),
        ("**loud** and `code`", {"bold", "code"}),
        ("- one\n- two", {"bullet", "line break"}),
        ("1. one", {"numbered list"}),
        ("see https://a.b", {"link"}),
        ("<b>x", {"tag"}),
        ("3 < 4 and 5 > 2", set()),
        ("nice :) really ;-)", {":)", ";-)"}),
        ("at 10:30 (see b:c)", set()),
        ("note: (this)", set()),
    ],
)
def test_marks(text: str, marks: set[str]) -> None:
    assert features(text, "mark") == marks


@pytest.mark.parametrize(
    ("text", "reason", "shape"),
    [
        ("", "eos", {"empty", "under 5 characters"}),
        (" \n ", "eos", {"empty", "under 5 characters"}),
        ("plain enough", "length", {"no end"}),
        ("x" * 201, "stop", {"over 200 characters"}),
        ("one two three four " * 4, "eos", {"says the same again"}),
        ("some text " + "# " * 10, "eos", {"filled with one sign"}),
        ("one two three four five six seven eight", "eos", set()),
    ],
)
def test_shape(text: str, reason: str, shape: set[str]) -> None:
    assert features(text, "shape", reason) == shape


def test_lengths_are_the_percentiles_of_the_start() -> None:
    texts = ["x" * n for n in range(1, 101)]
    lengths = Lengths.of(texts)
    assert lengths == Lengths(6, 95)
    assert sum(len(text) < lengths.low for text in texts) == sum(len(text) > lengths.high for text in texts) == 5
    assert Lengths.of([]) == Lengths(0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n\n- one (two) :)\n\n**three** `four` ### five",
        "Don't you know? \u4f60\u597d\u4e16\u754c! Yes\u2026 it\u2019s 3.5 & <b>more</b>",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \\ [x](y) ^_^ a|b",
    ],
)
def test_patterns_find_the_features_they_are_for(text: str) -> None:
    found = response_features(text, "eos", LENGTHS)
    for kind in ("character", "mark", "opening", "ending", "phrase"):
        assert found[kind]
        for name in found[kind]:
            patterns = feature_patterns(kind, name)
            assert all(re.compile(pattern) for pattern in patterns)
            if not name.endswith("letters"):
                assert re.search(patterns[-1], text), (kind, name)


def test_patterns_of_a_sign_spare_a_heading_first() -> None:
    narrow, *_, broad = feature_patterns("character", "#")
    assert re.search(narrow, "bla # # # # #")
    assert not re.search(narrow, "# One\n### Three\ntext")
    assert re.search(broad, "# One")
    assert set(MARKUP) >= {"heading", "bullet"}
    assert feature_patterns("shape", "empty") == []
