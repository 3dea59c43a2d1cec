"""Pieces of text as tokens come: together the whole response, and nothing that has to be taken back."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from raft.rollout.sampler import response_text
from raft.rollout.sampling import Generated, Sampling
from raft.rollout.streaming import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def stream(tokenizer: Any, text: str, stop: tuple[str, ...] = (), reason: Any = "eos") -> tuple[list[str], str, str]:
    """The pieces before the end, all text that was given, and what the response's text is."""
    tokens = tokenizer(text).input_ids
    pieces: list[str] = []
    found = TextStream(tokenizer, stop, pieces.append)
    for token in tokens:
        found.add(token)
    before = list(pieces)
    whole = response_text(Generated(tokens, reason), Sampling(stop=stop), tokenizer)
    found.finish(whole)
    return before, "".join(pieces), whole


@pytest.mark.parametrize(
    "text",
    [
        "Hello there, how are you?",
        "héllo ✓ 🙂 数学",
        "  spaces  around  ",
        "a\n\n b \n",
        "",
        "ends inside \ufffd",
        "日本",
    ],
)
def test_the_pieces_together_are_the_response(tokenizer: Any, text: str) -> None:
    before, together, whole = stream(tokenizer, text)
    assert together == whole == text.strip()
    assert all(piece for piece in before)
    if "\ufffd" not in text:
        assert "".join(before) == whole  # nothing was held back that had become certain
        assert not any("\ufffd" in piece for piece in before)  # no character in halves


def test_characters_of_several_tokens_come_whole(tokenizer: Any) -> None:
    assert len(tokenizer("🙂").input_ids) > 1
    assert stream(tokenizer, "🙂🙂")[0] == ["🙂", "🙂"]


def test_a_stop_string_never_shows_not_even_its_beginning(tokenizer: Any) -> None:
    before, together, whole = stream(tokenizer, "fine, ##thanks ###Human", ("###Human",), "stop")
    assert together == whole == "fine, ##thanks"
    assert "".join(before) == "fine, ##thanks"


def test_the_beginning_of_a_stop_string_shows_once_it_is_none(tokenizer: Any) -> None:
    before, together, _ = stream(tokenizer, "one ###Hum of bees", ("###Human",))
    assert together == "one ###Hum of bees"
    assert before[0].startswith("one") or before[0] == "o"
    before, together, _ = stream(tokenizer, "it ends ###Hum", ("###Human",))
    assert "".join(before) == "it ends"
    assert together == "it ends ###Hum"


class Revising:
    """Puts a space before a full stop until something follows it."""

    def decode(self, tokens: list[str], skip_special_tokens: bool) -> str:
        return "".join(tokens).replace(" .", "." if len(tokens) > 2 else " .")


def test_text_that_a_tokenizer_revises_is_not_taken_back() -> None:
    pieces: list[str] = []
    found = TextStream(Revising(), (), pieces.append)
    for token in ("so", " .", " What"):
        found.add(token)
    assert pieces == ["so", " ."]
    found.finish("so. What")
    assert pieces == ["so", " .", ". What"]
