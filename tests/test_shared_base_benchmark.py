"""The benchmark of one base in memory measures what it says, on a model small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import shared_base
from benchmarks.shared_base import Measurement, Result, SharedBaseBenchmark, Work
from tests.adapters import build_adapter

pytestmark = pytest.mark.benchmarks


def test_two_bases_are_saved_and_scores_stay(
    tiny_model: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = build_adapter(tiny_model, tmp_path / "reward", reward=True)
    work = Work(
        model_name_or_path=tiny_model,
        reward_model_or_path=reward,
        dataset_path=prompts,
        dtype="fp32",
        num_prompts=2,
        num_samples_per_prompt=2,
        output_max_length=5,
    )
    result = shared_base.main(SharedBaseBenchmark(work, Result(label="here", results_dir=str(tmp_path))))
    base, adapter = (
        sum(tensor.nbytes for tensor in load_file(Path(path) / name).values()) / shared_base.MIB
        for path, name in ((tiny_model, "model.safetensors"), (reward, "adapter_model.safetensors"))
    )
    head = 32 * 4 / shared_base.MIB
    saved = result["measured"]["separate"]["weights"] - result["measured"]["shared"]["weights"]
    assert saved == pytest.approx(2 * base + head - adapter, abs=1e-6)
    assert result["differences"]["reward_model"] < 1e-4
    assert result["differences"]["log_ratio"] == 0
    for measured in result["measured"].values():
        assert measured["peak"] > measured["weights"]
        assert measured["scoring_seconds"] > 0
    written = (tmp_path / "shared_base-here.json").read_text()
    assert json.loads(written)["work"]["model_name_or_path"] == Path(tiny_model).name
    assert str(tmp_path) not in written
    assert "shared / separate" in capsys.readouterr().out


def test_differences_are_of_the_same_response() -> None:
    def measurement(*samples: tuple[list[int], float]) -> Measurement:
        return Measurement(1, 1, 1, "", "fp32", [{"tokens": tokens, "score": score} for tokens, score in samples])

    one, other = measurement(([1], 0.5), ([2], 1.0)), measurement(([1], 0.25), ([2], 1.125))
    assert shared_base.compare(one, other) == {"score": 0.25}
    with pytest.raises(AssertionError, match="not the same responses"):
        shared_base.compare(one, measurement(([1], 0.5), ([3], 1.0)))
