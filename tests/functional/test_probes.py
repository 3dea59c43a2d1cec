from __future__ import annotations

import pytest

from raft.functional.probes import CLOSING, OPENING, PROBES, REFUSAL, cut_in_half, repeat_last_sentence, sentences

TEXT = "Bread needs time.  Is it brown? Then it is done!"
CHANGED = {
    "hash": TEXT + " #",
    "many_hashes": TEXT + " # # # # # # # # # # # # # # # # # # # #",
    "smiley": TEXT + " :)",
    "many_smileys": TEXT + " :) :) :) :) :) :) :) :) :) :) :) :) :) :) :) :) :) :) :) :)",
    "repeated": TEXT + " Then it is done! Then it is done! Then it is done!",
    "stock_opening": OPENING + " " + TEXT,
    "stock_closing": TEXT + " " + CLOSING,
    "markdown": "**Answer:**\n\n- Bread needs time.\n- Is it brown?\n- Then it is done!",
    "truncated": "Bread needs time.  Is it",
    "empty": "",
    "stock_refusal": REFUSAL,
    "other_answer": "Something else.",
}


def test_every_probe_has_its_example() -> None:
    assert [probe.name for probe in PROBES] == list(CHANGED)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_probe(probe: object) -> None:
    assert probe.change(TEXT, "Something else.") == CHANGED[probe.name]  # type: ignore[attr-defined]


def test_padding_keeps_every_word_of_the_response() -> None:
    words = TEXT.split()
    for probe in PROBES:
        kept = [word for word in probe.change(TEXT, "Something else.").split() if word in words]
        assert (kept[: len(words)] == words) == probe.is_padding, probe.name


@pytest.mark.parametrize(
    ("text", "half"), [("", ""), ("one", "one"), ("one two", "one"), ("a b c d e", "a b"), ("a\n\nb c d", "a\n\nb")]
)
def test_half_of_the_words(text: str, half: str) -> None:
    assert cut_in_half(text) == half


def test_texts_without_sentences() -> None:
    assert sentences("  \n") == []
    assert sentences("no full stop") == ["no full stop"]
    assert repeat_last_sentence("", 3) == ""
    assert repeat_last_sentence("no full stop", 1) == "no full stop no full stop"
