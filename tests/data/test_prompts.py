"""The shipped prompts in data/prompts are complete, balanced, distinct and short enough."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

PROMPTS_DIR = Path(__file__).resolve().parents[2] / "data" / "prompts"
FIELDS = ["prompt_id", "category", "harmful", "prompt"]
HARMLESS = {
    "advice",
    "coding_maths",
    "cooking",
    "everyday_how_to",
    "health_fitness",
    "history_travel",
    "science",
    "small_talk",
    "writing",
}
HARMFUL = {
    "drugs_dangerous_acts",
    "harassment_bullying",
    "hate_prejudice",
    "privacy_hacking",
    "self_harm_risky_advice",
    "theft_fraud",
    "violence_weapons",
}
MAX_CHARACTERS = 1200  # well under 256 tokens for English prose in any common tokenizer
SPLITS = {"train": ("train", 384), "held_out": ("held-out", 96)}

Row = dict[str, Any]


def read_split(name: str) -> list[Row]:
    text = (PROMPTS_DIR / f"{name}.jsonl").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def messages_of(row: Row) -> list[dict[str, str]]:
    prompt = row["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def full_text(row: Row) -> str:
    return "\n".join(message["content"] for message in messages_of(row))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def five_grams(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams; a text of fewer words counts as one gram, so that short prompts are compared too."""
    words = words_of(text)
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(left: set[tuple[str, ...]], right: set[tuple[str, ...]]) -> float:
    return len(left & right) / len(left | right)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return {name: read_split(name) for name in SPLITS}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Row]]) -> list[Row]:
    return [row for split in splits.values() for row in split]


@pytest.mark.parametrize("name", SPLITS)
def test_rows_are_numbered_in_file_order(splits: dict[str, list[Row]], name: str) -> None:
    prefix, num_rows = SPLITS[name]
    expected = [f"{prefix}-{number:04d}" for number in range(1, num_rows + 1)]
    assert [row["prompt_id"] for row in splits[name]] == expected


def test_fields_and_types(rows: list[Row]) -> None:
    for row in rows:
        assert list(row) == FIELDS, row
        assert isinstance(row["harmful"], bool), row
        assert row["harmful"] == (row["category"] in HARMFUL), row
        assert isinstance(row["prompt"], (str, list)), row


@pytest.mark.parametrize("name", SPLITS)
def test_categories_are_balanced(splits: dict[str, list[Row]], name: str) -> None:
    categories = HARMLESS | HARMFUL
    per_category = SPLITS[name][1] // len(categories)
    assert Counter(row["category"] for row in splits[name]) == dict.fromkeys(categories, per_category)


@pytest.mark.parametrize("name", SPLITS)
def test_categories_are_mixed_in_file_order(splits: dict[str, list[Row]], name: str) -> None:
    # Runs that stop early take a prefix of the file, so any sixth of it must hold most kinds.
    split = splits[name]
    window = len(split) // 6
    least = 8 if name == "held_out" else 14
    for start in range(0, len(split), window):
        assert len({row["category"] for row in split[start : start + window]}) >= least
    same = sum(left["category"] == right["category"] for left, right in pairwise(split))
    assert same / len(split) < 0.15


def test_share_of_harmful_and_multi_turn_rows(splits: dict[str, list[Row]]) -> None:
    for split in splits.values():
        assert sum(row["harmful"] for row in split) / len(split) == 7 / 16
        num_multi_turn = sum(isinstance(row["prompt"], list) for row in split)
        assert 0.07 <= num_multi_turn / len(split) <= 0.09


def test_turns_alternate_and_end_with_the_user(rows: list[Row]) -> None:
    for row in rows:
        messages = messages_of(row)
        roles = [message["role"] for message in messages]
        assert len(roles) % 2 == 1, row
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))], row
        assert len(roles) > 1 or isinstance(row["prompt"], str), row
        for message in messages:
            assert list(message) == ["role", "content"], row
            assert message["content"], row
            assert message["content"] == message["content"].strip(), row


def test_prompts_are_short_enough(rows: list[Row]) -> None:
    for row in rows:
        assert len(full_text(row)) <= MAX_CHARACTERS, row["prompt_id"]


def test_prompts_are_distinct(rows: list[Row]) -> None:
    normalised = Counter(" ".join(words_of(full_text(row))) for row in rows)
    assert [text for text, num in normalised.items() if num > 1] == []


def test_no_near_duplicates_within_or_across_files(rows: list[Row]) -> None:
    # The last turn alone: a shared question must not hide behind different earlier turns.
    grams = [(row["prompt_id"], five_grams(messages_of(row)[-1]["content"])) for row in rows]
    pairs = combinations(grams, 2)
    assert [(a, b) for (a, left), (b, right) in pairs if jaccard(left, right) >= 0.5] == []


def test_five_grams_and_jaccard_by_hand() -> None:
    # "a b c d e f" has 2 five-grams, "a b c d e g" has 2, they share 1 of 3.
    assert jaccard(five_grams("A b, c d e f"), five_grams("a b c d e g!")) == 1 / 3
    assert jaccard(five_grams("Hi there"), five_grams("hi, there.")) == 1.0
