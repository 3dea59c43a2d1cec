"""benchmarks/self_test.py measures, and stores examples that the self-test then uses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.self_test import Measured, difference, main
from raft.rewards.contract import RewardContract
from raft.rewards.reward_model import load_reward_model

pytestmark = pytest.mark.benchmarks


def test_differences_are_in_standard_deviations() -> None:
    assert difference([1.0, 2.0, 4.0], [1.0, 3.0, 2.0], 2.0) == {"min": 0.0, "mean": 0.5, "max": 1.0}


def test_it_measures_and_stores(
    tiny_reward_model: str, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(tiny_reward_model, tmp_path / "model"))
    RewardContract(score_std=1.0, accuracy=0.5).save(path)
    config = Measured(
        reward_model_or_path=str(path),
        dataset_path=preferences,
        validation_split_percentage=50,
        num_pairs=6,
        store=[1, 3],
        output_file=str(tmp_path / "found.json"),
    )
    main(config)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_pairs"] == 6
    assert found["fp32"]["failure"] is found["bf16"]["failure"] is None
    assert 0 <= found["fp32"]["batch"]["max"] < 1e-3 < found["bf16_against_fp32"]["max"] < 1
    assert found["fp32"]["without_eos"]["min"] > 0
    assert all(seconds > 0 for seconds in found["bf16"]["seconds"].values())
    contract = RewardContract.load(str(path))
    assert contract is not None
    assert contract.accuracy == 0.5
    assert contract.system_message == "rendered"
    rows = [json.loads(line) for line in Path(preferences).read_text().splitlines()]
    printed = capsys.readouterr().out.splitlines()
    for number, example in zip((1, 3), contract.examples, strict=True):
        (row,) = (row for row in rows if row["chosen"] == example.chosen and row["rejected"] == example.rejected)
        assert row["prompt"] == example.messages[0]["content"]
        assert printed[number].endswith(repr(row["prompt"]))
    model = load_reward_model(str(path), base=None, dtype="fp32", batch_size=2)
    example = model.contract.examples[0]
    assert model.score_rows([model.reader.encode(example.messages, example.chosen)]) == pytest.approx(
        [example.chosen_score], abs=0.1
    )
