"""Text of unknown origin on a terminal: nothing in it can act, and several texts fit beside each other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

# What a terminal acts on instead of showing it: C0 (with escape) and C1 controls but for tab and newline, and the marks
# that reorder text around them.
_ACTING = chain(
    range(9), range(11, 32), range(127, 160), (0x061C, 0x200E, 0x200F), range(0x202A, 0x202F), range(0x2066, 0x206A)
)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _ACTING}
_GAP = "  │  "


_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*@")


def without_passwords(text: str) -> str:
    """The text with ``user:password@`` of any address in it as ``...@``: screens, logs and records are passed on."""
    return _PASSWORD.sub("...@", text)


def visible(text: str) -> str:
    r"""The text with control characters, escape sequences and reordering marks spelled out, such as ``\x1b``."""
    return text.translate(_ESCAPES)


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int, *, narrowest: int = 28) -> str:
    """Texts in columns under their titles; one under the other where a column would be narrower than ``narrowest``.

    Args:
        titles, texts: one for each column, made visible here.
        width: cells of the terminal.
    """
    titles, texts = [visible(title) for title in titles], [visible(text) for text in texts]
    column = (width - len(_GAP) * (len(texts) - 1)) // len(texts)
    if column < narrowest:
        return "\n\n".join(f"{title}:\n{text}" for title, text in zip(titles, texts, strict=True))
    ruled = [f"{title}\n{'─' * min(_cells(title), column)}\n{text}" for title, text in zip(titles, texts, strict=True)]
    rows = zip_longest(*(_wrap(text.expandtabs(4), column) for text in ruled), fillvalue="")
    return "\n".join(_GAP.join(cell + " " * (column - _cells(cell)) for cell in row).rstrip() for row in rows)


def _wrap(text: str, width: int) -> Iterator[str]:
    """Lines of at most ``width`` cells, broken at spaces where there are any."""
    for line in text.split("\n"):
        while _cells(line) > width:
            fits = next(i for i in range(1, len(line) + 1) if _cells(line[: i + 1]) > width)
            space = line.rfind(" ", 1, fits + 1)
            end = space if line[:space].strip() and space > 0 else fits
            yield line[:end].rstrip()
            line = line[end:].lstrip(" ")
        yield line


def _cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
