"""Tokens of one response as they are drawn -> its text, piece by piece, as soon as a piece is certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the first bytes of a character


class TextStream:
    """Gives a response's text in pieces that together are what ``sampler.response_text`` gives at the end.

    Held back are the beginnings of characters and of stop strings, and white space that may be at the end.

    Args:
        tokenizer: decodes.
        stop: strings that end the response and are no part of it.
        on_text: given every piece.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._stop, self._on_text = tokenizer, stop, on_text
        self._tokens: list[int] = []
        self.shown = ""

    def add(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True).rstrip(INCOMPLETE)
        self._show(text[: self._certain(text)].strip())

    def finish(self, text: str) -> None:
        """Give what was held back; ``text`` is the whole response."""
        # A tokenizer that revises its text when more follows (spaces before punctuation) can not be taken back.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.shown, text, strict=False)))
        self._show(self.shown + text[common:])

    def _show(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            piece, self.shown = text[len(self.shown) :], text
            self._on_text(piece)

    def _certain(self, text: str) -> int:
        """How many characters come before any stop string, whole or begun."""
        ends = [text.find(stop) for stop in self._stop if stop in text]
        for stop in self._stop:
            begun = (size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size]))
            ends.append(len(text) - next(begun, 0))
        return min(ends, default=len(text))
