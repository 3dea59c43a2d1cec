from __future__ import annotations

import pytest

from raft.arguments import parse
from raft.errors import UserError
from raft.rewards.config import RewardConfig
from raft.rewards.spec import parse_specs
from raft.tools.score_config import ScoreConfig


@pytest.mark.parametrize(
    ("text", "name", "kind", "target", "options"),
    [
        ("data/reward_model", "reward_model", "model", "data/reward_model", {}),
        ("org/some-model", "some-model", "model", "org/some-model", {}),
        ("output_models/polite/final", "polite", "model", "output_models/polite/final", {}),
        ("./a,b,label=1", "a_b", "model", "./a,b", {"label": "1"}),  # commas in a path are its own
        ("m,base=x/y,label=positive", "m", "model", "m", {"label": "positive", "base": "x/y"}),
        ("mood=org/sentiment,label=positive", "mood", "model", "org/sentiment", {"label": "positive"}),
        ("my.rewards:correct", "correct", "function", "my.rewards:correct", {}),
        ("some/dir/rewards.py:correct", "correct", "function", "some/dir/rewards.py:correct", {}),
        ("mine.py:log_ratio", "log_ratio_function", "function", "mine.py:log_ratio", {}),
        ("mine.py:all", "all_function", "function", "mine.py:all", {}),
        ("http://127.0.0.1:8000/", "remote", "remote", "http://127.0.0.1:8000", {}),
        ("judge=https://example.org/v1", "judge", "remote", "https://example.org/v1", {}),
        ("rule:repetition,n=3,max=0.2", "repetition", "rule", "repetition", {"n": "3", "max": "0.2"}),
        ("rule:regex,pattern=a{1,2},b=c", "regex", "rule", "regex", {"pattern": "a{1,2},b=c"}),
        ("hash=rule:characters,characters=#=,", "hash", "rule", "characters", {"characters": "#=,"}),
    ],
)
def test_kinds(text: str, name: str, kind: str, target: str, options: dict[str, str]) -> None:
    (spec,) = parse_specs([text])
    assert (spec.name, spec.kind, spec.target, spec.options) == (name, kind, target, options)
    assert spec.flag == f"--reward {text}"


def test_names_are_unique() -> None:
    texts = ["rule:length,min=2", "rule:length,max=9", "length_2=rule:eos", "a:length"]
    assert [spec.name for spec in parse_specs([texts[0], texts[1], texts[3]])] == ["length", "length_2", "length_3"]
    with pytest.raises(UserError, match="the name length_2 is taken by another source"):
        parse_specs(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a=rule:eos", "a=rule:language"], "--reward a=rule:language: the name a is taken"),
        (["selected=rule:eos"], "the name selected means something else"),
        (["http://"], "expected http://HOST:PORT"),
        (["http://host:port"], "(?i)port"),
        (["http://host/?key=1"], "expected http://HOST:PORT"),
        (["rule:length,3"], "found '3' among the options, expected key=value"),
        ([""], "found no path"),
    ],
)
def test_refusals(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_specs(texts)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="RAFT_REWARD_TOKEN") as caught:
        parse_specs(["http://me:hunter2@host:1"])
    assert "hunter2" not in str(caught.value)


def config(*flags: str) -> RewardConfig:
    return parse(ScoreConfig, ["--dataset_path", "x", *flags], prog="raft score").reward


def test_flags() -> None:
    found = config("--reward", "rule:eos", "--reward", "m:f", "--reward_weights", "1,0.5")
    assert [spec.name for spec in found.specs()] == ["eos", "f"]
    assert found.weights() == [1.0, 0.5]
    assert found.normalizations() == ["none", "none"]
    assert config("--reward", "rule:eos", "m:f", "--reward_normalization", "batch").normalizations() == ["batch"] * 2
    (spec,) = config("--reward_model_or_path", "some/where").specs()
    assert (spec.name, spec.kind, spec.target) == ("reward_model", "model", "some/where")
    assert spec.flag == "--reward_model_or_path"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward", "rule:eos", "--reward_weights", "1,2"], "--reward_weights: found 2 for 1 sources"),
        (["--reward", "a", "b", "c", "--reward_normalization", "batch,none"], "--reward_normalization: found 2 for 3"),
        (["--reward", "rule:eos", "--reward_model_or_path", "m"], "give --reward m in place of"),
        (["--reward_timeout", "0"], "--reward_timeout: found 0.0"),
        (["--reward_retries", "-1"], "--reward_retries: found -1"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(*flags)
