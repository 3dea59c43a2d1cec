"""Discard rules: what makes a response unfit to train on, whatever its score. Settings, not literals."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raft.arguments import argument
from raft.errors import UserError


@dataclass
class DiscardConfig:
    """Discard rules (a discarded sample is recorded with its reason and never selected)"""

    discard_regex: list[str] = argument(
        [], "Discard responses in which one of these regular expressions matches anywhere.", commas=False
    )
    discard_shorter_than: int = argument(0, "Discard responses with fewer characters.")
    discard_unfinished: bool = argument(False, "Discard responses that reached output_max_length without EOS.")

    def __post_init__(self) -> None:
        for pattern in self.discard_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"--discard_regex: {pattern!r} is no regular expression: {error}.") from error


def discard_reason(config: DiscardConfig, text: str, finish_reason: str) -> str | None:
    """Why a response is discarded, or None.

    Args:
        text: the response.
        finish_reason: eos, stop or length.
    """
    for pattern in config.discard_regex:
        if re.search(pattern, text):
            return f"regex {pattern}"
    if len(text) < config.discard_shorter_than:
        return f"shorter than {config.discard_shorter_than} characters"
    if config.discard_unfinished and finish_reason == "length":
        return "no EOS"
    return None
