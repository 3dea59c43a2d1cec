"""One setting: what values it takes, and how a text or a YAML value becomes one."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from raft.errors import UserError

NONE_WORDS = ("none", "null")
TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
EXPECTED = {
    int: "a whole number such as 8",
    float: "a number such as 1e-5",
    bool: "true or false",
    str: "text (in YAML, put it in quotes)",
}


@dataclass(frozen=True)
class Flag:
    """One field of one group of a config."""

    name: str
    group: str
    kind: Any  # int, float, str, bool or Literal[...]; of a list: the kind of its values
    is_list: bool
    optional: bool  # may be None
    default: Any
    options: Mapping[str, Any]  # what ``argument`` was given

    @property
    def is_switch(self) -> bool:
        """Whether the flag works without a value."""
        return self.kind is bool and not self.is_list

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal as they are typed, or none."""
        return tuple(str(choice) for choice in get_args(self.kind))

    @property
    def expected(self) -> str:
        """What a value has to be, for an error."""
        expected = f"one of {', '.join(self.choices)}" if self.choices else EXPECTED[self.kind]
        return expected + (" or none" if self.optional and not self.is_list else "")

    def split(self, text: str) -> list[str]:
        """The values of a list that is given as one text."""
        pieces = [piece.strip() for piece in text.split(",")] if self.options["commas"] else [text]
        return [piece for piece in pieces if piece]


def convert(flag: Flag, value: Any, where: str) -> Any:
    """A text from the command line or a value from YAML as the flag's type.

    The words none and null give None where that is allowed, and an empty list where several of some words may be
    chosen. Raises ``UserError`` that starts with ``where``.
    """
    if flag.optional and (value is None or (isinstance(value, str) and value.lower() in NONE_WORDS)):
        return None
    if not flag.is_list:
        return _convert_one(flag, value, where)
    if isinstance(value, str):
        value = flag.split(value)
    values = value if isinstance(value, list | tuple) else [value]
    if flag.choices and [str(one).lower() for one in values] in ([word] for word in NONE_WORDS):
        return []
    return [_convert_one(flag, item, where) for item in values]


def convert_texts(flag: Flag, texts: list[str], where: str) -> Any:
    """All texts that the command line has for a flag; of several for a single value, the last."""
    if flag.is_list and len(texts) > 1:
        return convert(flag, [piece for text in texts for piece in flag.split(text)], where)
    return convert(flag, texts[-1], where)


def _convert_one(flag: Flag, value: Any, where: str) -> Any:
    try:
        return _scalar(flag.kind, value)
    except (ValueError, OverflowError):
        hint = nearest(value, flag.choices) if isinstance(value, str) else ""
        expected = flag.expected + ("." if hint else "")
        raise UserError(f"{where}: found {shown(value)}, expected {expected}{hint}") from None


def _scalar(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``; ValueError or OverflowError where it is not one."""
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _whole(value) if kind is int else _finite(value)
    if kind is str and isinstance(value, str) and "\0" not in value:  # no file name, pattern or model has one
        return value
    if kind is bool and isinstance(value, bool | int | str):
        word = str(value).lower()
        if word in TRUE_WORDS + FALSE_WORDS:
            return word in TRUE_WORDS
    for choice in get_args(kind):
        if isinstance(value, bool):  # YAML reads true as more than a word
            value = str(value).lower()
        if value in (choice, str(choice)):
            return choice
    raise ValueError


def _whole(value: int | float | str) -> int:
    """1e3 is a fine number of steps, 1.5 is not. Texts go through ``int`` first: floats have 53 bits."""
    if not isinstance(value, float):
        try:
            return int(value)
        except ValueError:
            pass
    number = float(value)
    if not number.is_integer():  # NaN and infinity are not either
        raise ValueError
    return int(number)


def _finite(value: int | float | str) -> float:
    """PyYAML reads 1e-5 as text, so texts are numbers here from either source."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def shown(value: Any) -> str:
    """A value in an error: quoted as in YAML, on one line, not too long."""
    if isinstance(value, list | tuple | dict):  # with YAML aliases it may be huge or hold itself
        return "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def underscored(name: str) -> str:
    """Dashes and underscores are the same in names."""
    return name.replace("-", "_")


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, else the first one that starts with it, else None."""
    known = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    if not close and name:
        close = [choice for choice in known if choice.startswith(name.lower())]
    return known[close[0]] if close else None


def nearest(name: str, choices: Iterable[str]) -> str:
    """' Did you mean "x"?' for the choice most like ``name``, or '' if there is none like it."""
    close = closest(name, choices)
    return f' Did you mean "{close}"?' if close else ""
