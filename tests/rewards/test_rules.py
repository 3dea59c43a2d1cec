from __future__ import annotations

import pytest

from raft.errors import UserError
from raft.rewards.rules import DiscardConfig, discard_reason
from raft.rewards.source import Candidate


@pytest.mark.parametrize(
    ("config", "text", "finish_reason", "expected"),
    [
        (DiscardConfig(), "", "length", None),  # without rules everything stays
        (DiscardConfig(discard_regex=["#{4,}"]), "a #### b", "eos", "regex #{4,}"),
        (DiscardConfig(discard_regex=["#{4,}"]), "# A heading ### is fine", "eos", None),
        (DiscardConfig(discard_regex=["^a", "b$"]), "ab", "eos", "regex ^a"),  # the first that is found
        (DiscardConfig(discard_regex=["^a", "b$"]), "bb", "eos", "regex b$"),
        (DiscardConfig(discard_regex=["(?i)SORRY"]), "I am sorry", "eos", "regex (?i)SORRY"),
        (DiscardConfig(discard_shorter_than=3), "ab", "eos", "shorter than 3 characters"),
        (DiscardConfig(discard_shorter_than=3), "abc", "eos", None),
        (DiscardConfig(discard_shorter_than=2), "\u4f60", "eos", "shorter than 2 characters"),  # characters, not bytes
        (DiscardConfig(discard_unfinished=True), "abc", "length", "no EOS"),
        (DiscardConfig(discard_unfinished=True), "abc", "eos", None),
        (DiscardConfig(discard_unfinished=True), "abc", "stop", None),  # ended as asked
    ],
)
def test_reasons(config: DiscardConfig, text: str, finish_reason: str, expected: str | None) -> None:
    assert discard_reason(config, Candidate([], text, finish_reason)) == expected


def test_a_bad_expression_is_refused() -> None:
    with pytest.raises(UserError, match=r"--discard_regex: '\(a'"):
        DiscardConfig(discard_regex=["fine", "(a"])
