"""How responses are drawn, and what is drawn. Without torch: flags are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when a response ends.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: new tokens at most.
        min_tokens: EOS can not be drawn before so many.
        stop: strings that end a response when they appear in its text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass
class Generated:
    """One response: the ids as drawn (EOS included) and why it ended."""

    tokens: list[int]
    finish_reason: FinishReason
