"""A reward that can be verified: is the answer right? ``--reward raft.rewards.arithmetic:correct``

The prompts of ``data/arithmetic`` have the right answer in their column ``answer``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

# A minus sign belongs to a number unless a digit stands right before it: "5-3" is two numbers, "= -3" is one.
_NUMBER = re.compile(r"(?:(?<!\d)[-\u2212])?(?:\d+(?:,\d{3})*(?:\.\d+)?|(?<!\d)\.\d+)")


def correct(responses: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the last number of a response is the prompt's ``answer``, 0 where it is another or there is none.

    Of an answer in words, such as "$1,024", its last number counts too. A prompt whose answer has none can not be
    judged: None.
    """
    return [_correct(response, right) for response, right in zip(responses, answer, strict=True)]


def _correct(response: str, right: Any) -> float | None:
    try:
        expected: Decimal | None = Decimal(str(right))
    except InvalidOperation:
        expected = last_number(str(right))
    if expected is None:
        return None
    found = last_number(response)
    return float(found is not None and found == expected)


def last_number(text: str) -> Decimal | None:
    """The last number that a text mentions, such as -1,024 or 0.5; None if there is none."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("\u2212", "-")) if numbers else None
