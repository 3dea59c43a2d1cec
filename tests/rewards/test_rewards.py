"""Several sources together: names, weights, normalisation, and what happens where one has no score."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from raft.arguments import parse
from raft.errors import UserError
from raft.rewards.config import RewardConfig
from raft.rewards.contract import RewardContract
from raft.rewards.function import FunctionSource
from raft.rewards.loading import load_rewards
from raft.rewards.rewards import NamedSource, Rewards
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import MODEL_OPTIONS
from raft.tools.score_config import ScoreConfig
from tests.adapters import build_adapter
from tests.conftest import build_model, run_ranks

NAN = math.nan
Answers = Sequence[float | Excluded]


class Fixed:
    """Says what it was told to."""

    def __init__(self, *answers: float | Excluded) -> None:
        self.answers, self.names = answers, list[str]()

    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> Answers:
        self.names.append(name)
        return self.answers[: len(candidates)]


def candidates(count: int) -> list[Candidate]:
    return [Candidate([{"role": "user", "content": "?"}], "x" * i) for i in range(count)]


def test_the_weighted_sum_ranks_and_every_score_is_kept() -> None:
    one, two = Fixed(1.0, 2.0, -1.0), Fixed(10.0, 0.0, 4.0)
    rewards = Rewards([NamedSource("one", one, 2.0), NamedSource("two", two, -0.5)])
    found = rewards.score(candidates(3), name="3/scoring")
    assert found.rewards == [2 * 1 - 5, 4, -2 - 2]
    assert found.of(2) == {"one": -1.0, "two": 4.0}
    assert found.excluded == [None, None, None]
    assert found.exclusions() is None
    assert (one.names, two.names) == (["3/scoring/one"], ["3/scoring/two"])


def test_batch_normalisation_by_hand() -> None:
    # 1, 3, 5 without the NaN: mean 3, deviation sqrt(8/3).
    one = NamedSource("one", Fixed(1.0, NAN, 3.0, 5.0), 2.0, "batch")
    two = NamedSource("two", Fixed(7.0, 7.0, 7.0, 7.0), 1.0, "batch")  # no differences: nothing to rank by
    found = Rewards([one, two]).score(candidates(4), name="x")
    deviation = math.sqrt(8 / 3)
    assert np.allclose(found.rewards, [-4 / deviation, NAN, 0, 4 / deviation], equal_nan=True)
    assert found.of(0) == {"one": 1.0, "two": 7.0}, "what is written down is as the source said it"
    assert found.scales == {"one": (3.0, pytest.approx(deviation)), "two": (7.0, 1.0)}
    again = Rewards([one, two]).score(candidates(1), name="y", scales=found.scales)
    assert again.rewards == [pytest.approx(-4 / deviation)]
    assert again.scales == found.scales


def test_a_deviation_that_is_rounding_is_none() -> None:
    one = NamedSource("one", Fixed(*[0.1] * 3), 1.0, "batch")
    assert np.std([0.1] * 3) > 0
    found = Rewards([one]).score(candidates(3), name="x")
    assert found.scales["one"] == (pytest.approx(0.1), 1.0)
    later = Rewards([NamedSource("one", Fixed(0.2), 1.0, "batch")]).score(candidates(1), name="y", scales=found.scales)
    assert later.rewards == [pytest.approx(0.1)]


def test_a_column_that_some_prompts_lack_is_none_in_every_batch() -> None:
    seen: list[Any] = []

    def needs(responses: list[str], answer: list[Any]) -> list[float]:
        seen.extend(answer)
        return [1.0] * len(responses)

    source = FunctionSource(needs, flag="--reward f", batch_size=1)
    columns: list[dict[str, object]] = [{"answer": 4}, {}, {"id": 1}]
    asked = [Candidate([{"role": "user", "content": "?"}], "x", extra=extra) for extra in columns]
    assert Rewards([NamedSource("f", source)]).score(asked, name="x").rewards == [1.0] * 3
    assert seen == [4, None, None]


def test_normalisation_by_a_fixed_scale() -> None:
    source = NamedSource("one", Fixed(1.0, 5.0), 1.0, "contract", (2.0, 4.0))
    assert Rewards([source]).score(candidates(2), name="x").rewards == [-0.25, 0.75]


def test_a_candidate_without_a_score_is_excluded_and_counted() -> None:
    one = NamedSource("one", Fixed(1.0, NAN, Excluded("raised ValueError", "ValueError (first)"), 1.0, math.inf))
    two = NamedSource("two", Fixed(1.0, Excluded("returned None"), 1.0, Excluded("returned None"), 1.0))
    found = Rewards([one, two]).score(candidates(5), name="x")
    assert found.excluded == [
        None, "one gave no finite score", "one raised ValueError", "two returned None", "one gave no finite score",
    ]  # fmt: skip
    assert [math.isnan(reward) for reward in found.rewards] == [False, True, True, True, True]
    assert found.exclusions() == (
        "4 of 5 responses have no reward: 2 x one gave no finite score; 1 x one raised ValueError: ValueError (first); "
        "1 x two returned None"
    )


def test_a_sum_that_overflows_is_excluded_and_counted() -> None:
    one = NamedSource("one", Fixed(1e308, -1e308, 1.0, NAN), 10.0)
    found = Rewards([one]).score(candidates(4), name="x")
    assert np.allclose(found.rewards, [NAN, NAN, 10.0, NAN], equal_nan=True)
    assert found.excluded == ["weighted sum is not finite"] * 2 + [None, "one gave no finite score"]
    assert found.of(0) == {"one": 1e308}, "what is written down is as the source said it"
    assert found.exclusions() == (
        "3 of 4 responses have no reward: 2 x weighted sum is not finite; 1 x one gave no finite score"
    )
    # A mean that overflows leaves nothing to rank by.
    batch = NamedSource("one", Fixed(1e308, 1e308), 1.0, "batch")
    with pytest.raises(UserError, match=r"^--reward: 2 of 2 responses have no reward: 2 x weighted sum is not finite"):
        Rewards([batch]).score(candidates(2), name="x")


def test_a_source_that_scores_nothing_stops_the_run() -> None:
    silent = NamedSource("two", Fixed(Excluded("returned None"), NAN), flag="--reward m:two")
    rewards = Rewards([NamedSource("one", Fixed(1.0, 1.0)), silent])
    with pytest.raises(UserError, match=r"^--reward m:two: no score for any of 2 responses: two returned None; gave"):
        rewards.score(candidates(2), name="x")
    lenient = rewards.score(candidates(2), name="x", strict=False)
    assert lenient.excluded == ["two returned None", "two gave no finite score"]
    assert rewards.score([], name="x").rewards == []


def test_sources_that_leave_no_response_between_them_stop_the_run() -> None:
    """Each judges the prompts of its own task, and None excludes a response."""
    one, two = Fixed(1.0, Excluded("returned None")), Fixed(Excluded("returned None"), 1.0)
    rewards = Rewards([NamedSource("one", one), NamedSource("two", two)])
    with pytest.raises(UserError, match=r"^--reward: 2 of 2 responses have no reward: 1 x two returned None; 1 x one"):
        rewards.score(candidates(2), name="x")
    assert all(rewards.score(candidates(2), name="x", strict=False).excluded)


def load(*flags: str) -> Rewards:
    return load_rewards(parse(ScoreConfig, ["--dataset_path", "x", *flags], prog="raft score").reward)


def test_models_functions_and_rules_from_flags(tiny_reward_model: str) -> None:
    rewards = load(
        "--reward", f"liked={tiny_reward_model}", "tests.rewards.sources:length", "rule:length,max=2,unit=characters",
        "--reward_weights", "0", "1", "10", "--reward_dtype", "fp32",
    )  # fmt: skip
    assert [source.name for source in rewards.sources] == ["liked", "length", "length_2"]
    found = rewards.score(candidates(4), name="x", progress=None)
    assert found.rewards == [0, 1, 2, 3 - 10]
    (alone,) = load("--reward_model_or_path", tiny_reward_model, "--reward_dtype", "fp32").sources
    assert (alone.name, alone.weight, alone.normalization) == ("reward_model", 1.0, "none")
    assert found.scores["liked"] == alone.source.score(candidates(4), name="x", progress=None)


def test_a_label_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mood"
    build_model(path, classifier=True, seed=3)
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    config = AutoConfig.from_pretrained(path, id2label=labels, label2id={name: i for i, name in labels.items()})
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    flags = ["--reward_dtype", "fp32", "--reward"]
    by_name = load(*flags, f"a={path},label=positive", f"b={path},label=2", f"c={path},label=negative")
    scores = by_name.score(candidates(3), name="x", progress=None).scores
    assert scores["a"] == scores["b"] != scores["c"]
    with pytest.raises(UserError, match=r"--reward .*mood,label=happy.*happy.*negative.*neutral.*positive"):
        load(*flags, f"{path},label=happy")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("localhost:8000", "if a remote scorer is meant, give http://localhost:8000."),
        ("judge=127.0.0.1:80/v1", "if a remote scorer is meant, give http://127.0.0.1:80/v1."),
        ("my_rewards.short", "if a Python function is meant, give my_rewards:short."),
        ("my.rewards.short", "if a Python function is meant, give my.rewards:short."),
        ("rm,lable=positive", "lable is no option of a model, those are " + ", ".join(MODEL_OPTIONS) + "."),
        ("rm,lable=a,label=positive", "lable is no option of a model, those are " + ", ".join(MODEL_OPTIONS) + "."),
    ],
)
def test_what_was_probably_meant_where_there_is_no_such_model(spec: str, hint: str) -> None:
    target = spec.removeprefix("judge=").removesuffix(",label=positive")
    with pytest.raises(UserError) as caught:
        load("--reward", spec)
    assert str(caught.value) == f"--reward {spec}: there is no directory {target}; {hint}"


def test_a_model_is_named_once(tiny_reward_model: str, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_reward_model, tmp_path / "rm")
    with pytest.raises(UserError) as caught:
        load("--reward", f"{path},label=happy")
    assert str(caught.value) == (
        f"--reward {path},label=happy: label is happy, but there is no such output; there are 0 (LABEL_0)."
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match=rf"^--reward {path}: its tokenizer has token ids up to"):
        load("--reward", str(path))
    with pytest.raises(UserError, match=rf"^--reward_model_or_path: {path}: its tokenizer has token ids up to"):
        load("--reward_model_or_path", str(path))


def test_an_adapter_is_named_once(tiny_model: str, tmp_path: Path) -> None:
    path = build_adapter(tiny_model, tmp_path / "adapter", reward=True)
    build_model(tmp_path / "other", seed=5)
    with pytest.raises(UserError) as caught:
        load("--reward", f"{path},base={tmp_path / 'other'}")
    assert str(caught.value).count(f"{path}") == 2
    assert f": {path} was trained on another base model" in str(caught.value)


def test_normalisation_by_the_contract(tiny_model: str, tmp_path: Path) -> None:
    path = build_adapter(tiny_model, tmp_path / "adapter", reward=True)
    file = Path(path) / "reward_model.json"
    contract = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(contract | {"score_mean": 0.5, "score_std": 2.0}))
    assert RewardContract.load(path) is not None
    plain, normalised = load("--reward", path), load("--reward", path, "--reward_normalization", "contract")
    scores = plain.score(candidates(3), name="x", progress=None).rewards
    expected = [(score - 0.5) / 2.0 for score in scores]
    assert normalised.score(candidates(3), name="x", progress=None).rewards == pytest.approx(expected)


def test_contract_normalisation_needs_a_contract(tiny_reward_model: str) -> None:
    for spec in (tiny_reward_model, "rule:eos"):
        with pytest.raises(UserError, match=r"--reward_normalization contract: .* has no score mean and deviation"):
            load("--reward", spec, "--reward_normalization", "contract")


RANKS = """
import json, os
import torch.distributed as dist
from raft import distributed
from raft.errors import UserError
from raft.rewards.function import FunctionSource
from raft.rewards.rewards import NamedSource, Rewards
from raft.rewards.source import Candidate

distributed.initialize()
calls = []

def function(responses, **columns):
    calls.append(len(responses))
    if "bad" in responses:
        raise ValueError("a bad one")
    return [float(len(response)) for response in responses]

def failing(responses, **columns):
    raise ValueError(f"batch of {responses[0]}")

candidates = [Candidate([], "x" * i if i != 5 else "bad") for i in range(23)]
rewards = Rewards([NamedSource("f", FunctionSource(function, flag="--reward f", batch_size=2))])
found = rewards.score(candidates, name="one", progress=None)
every = distributed.all_gather((found.rewards, list(found.excluded), len(calls)))
assert all(str(part[:2]) == str(every[0][:2]) for part in every)
assert found.excluded[5] == "f raised ValueError"
broken = Rewards([NamedSource("g", FunctionSource(failing, flag="--reward g", batch_size=8))])
try:
    broken.score(candidates, name="two", progress=None)
    said = None
except UserError as error:
    said = str(error)
said = distributed.all_gather(said)
if distributed.is_main():
    print(json.dumps({"rewards": str(found.rewards), "calls": [part[2] for part in every], "said": said}))
distributed.shutdown()
"""


def test_ranks_share_the_batches_and_fail_together() -> None:
    one, two = (json.loads(run_ranks(RANKS, ranks).splitlines()[-1]) for ranks in (1, 2))
    assert one["rewards"] == two["rewards"]
    # 12 batches; the one with the bad response was called again for each of its two responses.
    assert one["calls"] == [14]
    assert sum(two["calls"]) == 14
    assert one["said"] == ["--reward g: raised ValueError (batch of) for every response of a batch."]
    assert len(set(two["said"])) == 1, "every rank stops for the same reason"
    assert two["said"][0].startswith("--reward g: raised ValueError")


@pytest.mark.parametrize(("given", "on_gpu", "expected"), [(None, False, 32), (None, True, 256), (5, True, 5)])
def test_a_gpu_scores_more_texts_at_once(given: int | None, on_gpu: bool, expected: int) -> None:
    assert RewardConfig(reward_batch_size=given).texts_at_once(on_gpu=on_gpu) == expected


def test_a_function_is_given_as_many_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.distributed.device", lambda: torch.device("cuda"))
    config = RewardConfig(reward=["tests.rewards.sources:length"])
    (source,) = load_rewards(config).sources
    assert source.source.batch_size == 32  # type: ignore[attr-defined]
