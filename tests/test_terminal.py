from __future__ import annotations

import unicodedata

from raft.terminal import side_by_side, visible


def test_nothing_that_a_terminal_acts_on_is_left() -> None:
    attack = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\rd\x00\x08\x7f\u202eevil\u2066\u200f"
    shown = visible(attack)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf")]
    assert shown == r"a\x1b[2J\x1b]0;title\x07b\x9b31mc\rd\x00\x08\x7f\u202eevil\u2066\u200f"


def test_every_control_character_of_unicode_is_spelled_out_but_tab_and_newline() -> None:
    controls = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]
    assert len(controls) == 65
    assert [c for c in controls if visible(c) == c] == ["\t", "\n"]


def test_ordinary_text_stays() -> None:
    text = "naïve café\n\t数学 👩‍🔬 عربي — «ok»"
    assert visible(text) == text


def test_columns_beside_each_other() -> None:
    shown = side_by_side(["one", "two"], ["a b c d e f g h i j k l m n o p q r", "first\nsecond"], 45, narrowest=20)
    assert shown.split("\n") == [
        "one                   │  two",
        "───                   │  ───",
        "a b c d e f g h i j   │  first",
        "k l m n o p q r       │  second",
    ]


def test_wide_characters_take_two_cells_and_long_words_are_broken() -> None:
    shown = side_by_side(["m", "n"], ["数学数学数学", "x" * 13], 25, narrowest=8)
    assert shown.split("\n")[2:] == ["数学数学数  │  xxxxxxxxxx", "学          │  xxx"]


def test_where_columns_would_be_narrow_they_stand_below_each_other() -> None:
    assert side_by_side(["one", "two"], ["a", "b"], 45) == "one:\na\n\ntwo:\nb"


def test_columns_are_made_visible() -> None:
    assert "\x1b" not in side_by_side(["\x1b[1m", "n"], ["\x1b[2J", "b"], 100)
