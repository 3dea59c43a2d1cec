"""Penalties for what a response looks like: 0 where nothing is wrong, -1 at worst.

Pure functions of words and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence


def repeated_share(words: Sequence[str], n: int) -> float:
    """Share of a text's n-grams that stood in it before: 1 - distinct / all; 0 for fewer than n words."""
    total = len(words) - n + 1
    if total <= 0:
        return 0.0
    return 1.0 - len({tuple(words[i : i + n]) for i in range(total)}) / total


def overlong_penalty(length: int, max_length: int, cache: int) -> float:
    """Soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).

    Args:
        length: tokens of the response, |y|.
        max_length: L_max, from which on the penalty is -1.
        cache: L_cache, the tokens before it over which the penalty grows.
    """
    if length <= max_length - cache:
        return 0.0
    if length <= max_length:
        return ((max_length - cache) - length) / cache
    return -1.0


def outside_bounds(length: int, shortest: int, longest: int | None) -> float:
    """-1 for a length below ``shortest`` or above ``longest``."""
    return -1.0 if length < shortest or (longest is not None and length > longest) else 0.0
