"""The layout of a --help page: a title, a usage line, examples, and sections of aligned entries."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

Entry = tuple[str, str]  # what is typed, what it does
Section = tuple[str, Sequence[Entry]]

MAX_WIDTH = 100
MAX_LEFT = 36  # a longer left side gets a line of its own
GLUE = "\N{NO-BREAK SPACE}"  # a space at which no line is broken; written as an ordinary one


def help_page(about: str, usage: str, examples: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as text, as wide as the terminal and at most 100 columns. ``about`` is a docstring."""
    width = max(40, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
    blocks = [*_paragraphs(about, width), "\n".join(_wrap(f"Usage: {usage}", width, indent="  "))]
    if examples:
        shown = [line for example in examples for line in _example(example, width)]
        blocks.append("\n".join(["Examples:", *shown]))
    widest = min(MAX_LEFT, width // 2 - 4)
    lefts = [len(left) for _, entries in sections for left, _ in entries if len(left) <= widest]
    column = max(lefts, default=widest) + 4
    for title, entries in sections:
        lines = [line for left, right in entries for line in _entry(left, right, column, width)]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks).replace(GLUE, " ")


def glued(text: str) -> str:
    """``text`` kept on one line of a page, if it is short enough for that to look well."""
    return text.replace(" ", GLUE) if len(text) <= 40 else text


def _paragraphs(docstring: str, width: int) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip())
    return ["\n".join(_wrap(paragraph, width)) for paragraph in paragraphs if paragraph]


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _example(command: str, width: int) -> list[str]:
    """A command line to copy, broken before flags only, so that flag and value stay together."""
    lines = _wrap(re.sub(r"[ \n]+(?!--)", GLUE, command), width - 4, indent="    ")
    return [f"  {line} \\" for line in lines[:-1]] + [f"  {lines[-1]}"]


def _entry(left: str, right: str, column: int, width: int) -> Iterator[str]:
    lines = _wrap(right, width - column) or [""]
    if len(left) + 4 > column:
        yield f"  {left}"
    else:
        yield f"  {left.ljust(column - 2)}{lines.pop(0)}".rstrip()
    for line in lines:
        yield " " * column + line
