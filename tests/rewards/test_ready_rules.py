from __future__ import annotations

import sys

import pytest

from raft.errors import UserError
from raft.rewards.language import language_model
from raft.rewards.ready_rules import RULES, RuleSource, load_rule
from raft.rewards.rules import DiscardConfig, discard_reason
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import parse_specs

ENGLISH = "Could you please tell me how I can bake a good loaf of bread at home?"
GERMAN = "Mische Mehl, Wasser, Salz und Hefe, und lass den Teig eine Nacht lang in der Schale gehen."
ANSWER = "Mix the flour with water, salt and yeast, and leave the dough in its bowl overnight."


def penalty(text: str, response: str, finish_reason: str | None = "eos", num_tokens: int | None = None) -> object:
    (spec,) = parse_specs([text])
    tokens = None if num_tokens is None else [7] * num_tokens
    candidate = Candidate([{"role": "user", "content": ENGLISH}], response, finish_reason, response_tokens=tokens)
    rule = load_rule(spec.target, spec.options, spec.flag)
    (found,) = RuleSource(rule).score([candidate], name="test")
    return found


@pytest.mark.parametrize(
    ("rule", "response", "expected"),
    [
        ("rule:regex,pattern=#{2,3}", "a ## b", -1.0),  # commas and all
        ("rule:regex,pattern=#{2,3}", "a # b", 0.0),
        ("rule:characters,characters=#*,", "a, b", -1.0),  # the comma is one of them
        ("rule:characters,characters=#*,", "a b", 0.0),
        ("rule:repetition,n=1", "so so so good", -0.5),
        ("rule:repetition", "one two three four", 0.0),
        ("rule:repetition,n=1,max=0.6", "so so so good", 0.0),
        ("rule:repetition,n=1,max=0.4", "so so so good", -0.5),
        ("rule:length,min=3,unit=words", "too short", -1.0),
        ("rule:length,min=3,unit=words", "long enough now", 0.0),
        ("rule:length,max=4,unit=characters", "12345", -1.0),
        ("rule:language", ANSWER, 0.0),
        ("rule:language", GERMAN, -1.0),
        ("rule:language", "Ja.", 0.0),  # too short to tell
        ("rule:language", "", 0.0),
    ],
)
def test_penalties_of_texts(rule: str, response: str, expected: float) -> None:
    assert penalty(rule, response) == pytest.approx(expected)


def test_penalties_of_tokens_and_ends() -> None:
    assert [penalty("rule:length,min=2,max=3", "x", num_tokens=n) for n in range(1, 5)] == [-1, 0, 0, -1]
    assert [penalty("rule:overlong,max=8,cache=4", "x", num_tokens=n) for n in (4, 5, 8, 9)] == [0, -0.25, -1, -1]
    assert [penalty("rule:eos", "x", reason) for reason in ("eos", "stop", "length")] == [0, 0, -1]


def test_what_a_rule_needs_and_is_not_given_excludes() -> None:
    assert penalty("rule:eos", "x", None) == Excluded("was not told how the response ended")
    for rule in ("rule:length,max=3", "rule:overlong,max=8,cache=4"):
        found = penalty(rule, "x")
        assert isinstance(found, Excluded)
        assert found.reason == "was not given the response's tokens"


def test_language_of_a_prompt_that_says_nothing_is_no_reason() -> None:
    rule = load_rule("language", {}, "--reward")
    assert rule(Candidate([{"role": "user", "content": "2 + 2 = ?"}], GERMAN)) == 0.0
    assert rule(Candidate([{"role": "user", "content": GERMAN}], GERMAN)) == 0.0
    assert rule(Candidate([{"role": "user", "content": GERMAN}], ANSWER)) == -1.0


def test_language_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"rule:language needs .* py3langid: pip install 'raft-toolkit\[language\]'"):
        load_rule("language", {}, "--reward")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("rule:repetitions", r"unknown rule repetitions.*Did you mean \"repetition\""),
        ("rule:repetition,m=3", "unknown option m, expected n, max"),
        ("rule:eos,n=3", "unknown option n, expected none"),
        ("rule:repetition,n=three", "n: found 'three', expected a whole number"),
        ("rule:repetition,max=-1", "max: found '-1', expected a number from 0"),
        ("rule:length,unit=inches", "unit: found inches, expected one of tokens, words, characters"),
        ("rule:length,unit=words", "needs a bound, as in rule:length,min=5"),
        ("rule:length,min=50,max=5", r"max: found 5, allowed is min \(50\) or more"),
        ("rule:repetition,n=0", "n: found 0, allowed are whole numbers from 1"),
        ("rule:repetition,max=5", "max: found 5, allowed is a share from 0 to below 1"),
        ("rule:language,confidence=2", "confidence: found 2, allowed is 0 to 1"),
        ("rule:regex", "needs the option pattern"),
        ("rule:regex,pattern=(a", r"'\(a' is no regular expression"),
        ("rule:overlong,max=8", "needs the option cache"),
        ("rule:overlong,max=8,cache=9", "cache: found 9, allowed is 1 to max"),
    ],
)
def test_refusals_name_flag_and_rule(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        penalty(rule, "x")
    assert str(caught.value).startswith(f"--reward {rule}: ")


def test_rules_discard_what_they_score_below_0() -> None:
    config = DiscardConfig(discard_rule=["repetition,n=1,max=0.4", "rule:length,min=2,unit=words"])
    assert discard_reason(config, Candidate([], "so so so good")) == "rule repetition,n=1,max=0.4"
    assert discard_reason(config, Candidate([], "good")) == "rule length,min=2,unit=words"
    assert discard_reason(config, Candidate([], "so good")) is None
    with pytest.raises(UserError, match=r"--discard_rule repetitive: unknown rule"):
        DiscardConfig(discard_rule=["repetitive"])


def test_a_reward_below_the_least_discards() -> None:
    config = DiscardConfig(discard_below=0.5)
    assert discard_reason(config, Candidate([], "x"), 0.25) == "reward below 0.5"
    assert discard_reason(config, Candidate([], "x"), 0.5) is None
    assert discard_reason(DiscardConfig(), Candidate([], "x"), -9.0) is None


def test_every_rule_is_documented() -> None:
    from tests.conftest import ROOT

    page = (ROOT / "docs/rewards.md").read_text()
    assert [name for name in RULES if f"`rule:{name}" not in page] == []
