"""Discard rules: what makes a response unfit to train on, whatever its score. Settings, not literals."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from raft.arguments import argument
from raft.errors import UserError
from raft.rewards.ready_rules import Rule, load_rule
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import rule_options


@dataclass
class DiscardConfig:
    """Discard rules (a discarded sample is recorded with its reason and never selected)"""

    discard_regex: list[str] = argument(
        [], "Discard responses in which one of these regular expressions matches anywhere.", commas=False
    )
    discard_shorter_than: int = argument(0, "Discard responses with fewer characters.")
    discard_unfinished: bool = argument(False, "Discard responses that reached output_max_length without EOS.")
    discard_rule: list[str] = argument(
        [],
        "Discard responses that a ready rule scores below 0, such as repetition,n=3,max=0.2 or language: see "
        "docs/rewards.md.",
        metavar="RULE",
        commas=False,
    )
    discard_below: float | None = argument(
        None, "Discard responses with a lower reward: 1 trains on right answers alone, where wrong ones get 0."
    )
    rules: dict[str, Rule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for pattern in self.discard_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"--discard_regex: {pattern!r} is no regular expression: {error}.") from error
        self.rules = {text: _rule(text) for text in (one.removeprefix("rule:") for one in self.discard_rule)}


def _rule(text: str) -> Rule:
    name, _, options = text.partition(",")
    flag = f"--discard_rule {text}"
    return load_rule(name, rule_options(options, flag), flag)


def discard_reason(config: DiscardConfig, candidate: Candidate, reward: float = 0.0) -> str | None:
    """Why a response is discarded, or None.

    Args:
        candidate: the response.
        reward: what would rank it.
    """
    for pattern in config.discard_regex:
        if re.search(pattern, candidate.response):
            return f"regex {pattern}"
    if len(candidate.response) < config.discard_shorter_than:
        return f"shorter than {config.discard_shorter_than} characters"
    if config.discard_unfinished and candidate.finish_reason == "length":
        return "no EOS"
    for text, rule in config.rules.items():
        penalty = rule(candidate)
        if isinstance(penalty, Excluded) or penalty < 0:
            return f"rule {text}"
    if config.discard_below is not None and reward < config.discard_below:
        return f"reward below {config.discard_below:g}"
    return None
