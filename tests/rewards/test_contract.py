"""The file beside a reward model: what it holds, what older ones lacked, and what is refused in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft.errors import UserError
from raft.rewards.contract import FILE, RewardContract, ScoredPair

HELLO = {"role": "user", "content": "Hello"}


def write(directory: Path, **values: object) -> Path:
    path = directory / FILE
    path.write_text(json.dumps(values))
    return path


def test_a_contract_survives_its_file(tmp_path: Path) -> None:
    contract = RewardContract(
        template="raw",
        max_length=99,
        truncation_side="right",
        padding_side="left",
        score_token="last",
        label=1,
        sign=-1,
        body_dtype="bf16",
        accuracy=0.7,
        num_pairs=10,
        score_mean=-0.1,
        examples=(ScoredPair((HELLO,), "Hi.", "\u4f60\u597d", 1.5, -0.25),),
    )
    contract.save(tmp_path)
    assert RewardContract.load(str(tmp_path)) == contract
    assert RewardContract.load(str(tmp_path / "nowhere")) is None


def test_a_file_of_the_first_kind_still_loads(tmp_path: Path) -> None:
    """The fields that contracts had at first; the others have the values that were the only ones then."""
    first = {
        "template": "chat",
        "max_length": 256,
        "score_token": "eos",
        "label": 0,
        "base_model": "output_models/base",
        "base_model_fingerprint": "13c60cf2a0557589",
        "accuracy": 0.71,
        "num_pairs": 201,
        "score_mean": 0.8,
        "score_std": 0.79,
    }
    contract = RewardContract.read(write(tmp_path, **first))
    assert {name: getattr(contract, name) for name in first} == first
    assert (contract.truncation_side, contract.padding_side, contract.sign) == ("left", "right", 1)
    assert contract.examples == ()
    assert contract.chat_template is contract.rendered_example is contract.body_dtype is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "chatml"}, 'template: found "chatml", allowed are "auto", "chat", "human_assistant", "raw", "pa'),
        ({"score_token": "cls"}, 'score_token: found "cls", allowed are "eos", "last", "template", "pooled".'),
        ({"padding_side": None}, 'padding_side: found null, allowed are "right", "left".'),
        ({"truncation_side": "both"}, 'truncation_side: found "both", allowed are "left", "right".'),
        ({"sign": 0}, "sign: found 0, allowed are 1, -1."),
        ({"max_length": "512"}, 'max_length: found "512", allowed are integers from 1.'),
        ({"max_length": True}, "max_length: found true, allowed are integers from 1."),
        ({"label": -1}, "label: found -1, allowed are integers from 0, names and null."),
        ({"label": 0.5}, "label: found 0.5, allowed are integers from 0"),
        ({"score_std": -1.0}, "score_std: found -1.0, allowed are numbers from 0 and null."),
        ({"score_std": float("nan")}, "score_std: found NaN, allowed are numbers from 0 and null."),
        ({"score_std": float("inf")}, "score_std: found Infinity, allowed are numbers from 0 and null."),
        ({"score_mean": float("-inf")}, "score_mean: found -Infinity, allowed are numbers and null."),
        ({"accuracy": float("nan")}, "accuracy: found NaN, allowed are numbers and null."),
        ({"examples": [{"chosen": "a"}]}, "examples: expected a list of objects with the fields chosen, chosen_score,"),
        ({"examples": "none"}, "examples: expected a list"),
    ],
)
def test_wrong_values_are_refused_by_field(tmp_path: Path, values: dict[str, object], message: str) -> None:
    path = write(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        RewardContract.load(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_scores_that_are_all_the_same_may_be_recorded(tmp_path: Path) -> None:
    RewardContract(score_mean=-1.0, score_std=0.0).save(tmp_path)
    assert RewardContract.load(str(tmp_path)) == RewardContract(score_mean=-1.0, score_std=0.0)


def test_a_file_that_was_named_and_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.json: cannot be read \(No such file"):
        RewardContract.read(tmp_path / "mine.json")
