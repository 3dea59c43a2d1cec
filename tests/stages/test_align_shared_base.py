"""``raft align --use_lora`` with one base in memory: the run that it is with three."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raft import cli
from raft.run_directory import read_jsonl
from tests.adapters import build_adapter
from tests.conftest import run_ranks
from tests.stages.test_align import RANKS, assert_same_files, assert_same_run, command_line, samples_of

Run = Callable[..., Path]
ZERO2 = ["--deepspeed", "scripts/deepspeed/zero2.json"]
ZERO3 = ["--deepspeed", "scripts/deepspeed/zero3.json"]


@pytest.fixture(scope="module")
def flags(tiny_model: str, prompts: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """b=4, k=3, two iterations; policy, reward model and reference are upon the tiny model."""
    reward = build_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "reward", reward=True, seed=5)
    return command_line(
        model_name_or_path=tiny_model,
        reward_model_or_path=reward,
        use_lora=True,
        dataset_path=prompts,
        eval_dataset_path="none",
        validation_split_percentage=25,
        num_raft_iteration=2,
        raft_batch_size=4,
        num_samples_per_prompt=3,
        output_max_length=8,
        num_train_epochs=1,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        eval_every_n_iterations=1,
        kl_coefficient=0.1,
        dtype="fp32",
    )


@pytest.fixture(scope="module")
def align(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run ``raft align`` in this process; gives the run directory."""
    directory = tmp_path_factory.mktemp("runs")

    def run(name: str, *more: str, code: int = 0) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
            size = command_line(per_device_train_batch_size=2) if "--per_device_train_batch_size" not in more else []
            assert cli.main(["align", *flags, *size, *more, "--output_dir", str(directory / name)]) == code
        return directory / name

    return run


@pytest.fixture(scope="module")
def shared(align: Run) -> Path:
    return align("shared")


def assert_same_choices(one: Path, other: Path) -> None:
    """The same responses, selected ones included; scores and log-ratios but for rounding."""
    for iteration in (1, 2):
        for a, b in zip(samples_of(one, iteration), samples_of(other, iteration), strict=True):
            assert {key: a[key] for key in ("response_tokens", "selected")} == {
                key: b[key] for key in ("response_tokens", "selected")
            }
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)
            assert a["reward"] == pytest.approx(b["reward"], abs=1e-4)


def test_a_shared_run_is_the_separate_run(align: Run, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    separate = align("separate", "--no_share_base_model")
    assert "share" not in capsys.readouterr().out
    assert_same_choices(shared, separate)
    assert_same_files(shared / "final", separate / "final")
    ratios = [row["scores"]["log_ratio"] for row in samples_of(shared, 2)]
    assert max(map(abs, ratios)) > 0.1, "the policy has moved, or this would show nothing"
    rows: list[Any] = [read_jsonl(run / "held_out/0002.jsonl") for run in (shared, separate)]
    assert [row["reward"] for row in rows[0]] == pytest.approx([row["reward"] for row in rows[1]], abs=1e-4)


def test_only_the_policys_adapter_is_exported(shared: Path) -> None:
    assert not [path for path in (shared / "final").rglob("*") if path.is_dir()]
    settings = json.loads((shared / "final/adapter_config.json").read_text())
    assert settings["task_type"] == "CAUSAL_LM"
    assert not settings["modules_to_save"]


@pytest.mark.parametrize("first", ["--share_base_model", "--no_share_base_model"])
def test_resuming_equals_no_interruption(align: Run, shared: Path, first: str) -> None:
    """A checkpoint has nothing of the reward model, so the flag may change."""
    align(f"resumed{first}", first, "--num_raft_iteration", "1")
    resumed = align(f"resumed{first}", "--resume", "--num_raft_iteration", "2")
    assert_same_choices(resumed, shared)
    assert samples_of(resumed, 2) == samples_of(shared, 2)
    assert_same_files(resumed / "final", shared / "final")


def test_zero_2_and_two_ranks(align: Run, shared: Path, flags: list[str], tmp_path: Path) -> None:
    """Ranks score different batches at a time of their own; each switches its own adapters."""
    one = align("zero2", *ZERO2, "--share_base_model")
    assert_same_choices(shared, one)
    small = command_line(per_device_train_batch_size=1, reward_batch_size=3)
    arguments = {
        name: [*flags, *small, *zero, "--share_base_model", "--output_dir", str(tmp_path / name)]
        for name, zero in {"ranks": [], "ranks-zero2": ZERO2}.items()
    }
    run_ranks(RANKS, 2, json.dumps(arguments))
    for name in arguments:
        assert_same_choices(shared, tmp_path / name)


def test_zero_3_shards_the_base(align: Run, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align("refused", *ZERO3, "--share_base_model", code=2)
    assert "--share_base_model: under ZeRO-3 no rank holds the base model whole." in capsys.readouterr().err
    automatic = align("zero3", *ZERO3)
    assert "are loaded apart from the policy: under ZeRO-3" in capsys.readouterr().out
    assert_same_choices(shared, automatic)


def test_a_policy_trained_whole_has_no_base_to_share(align: Run, capsys: pytest.CaptureFixture[str]) -> None:
    align("whole", "--no_use_lora", "--share_base_model", code=2)
    assert "--share_base_model: a policy trained whole" in capsys.readouterr().err


def test_bf16_shares_too(align: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with recomputation and dropout: a run again is the same run, bit for bit."""
    more = ["--dtype", "bf16", "--gradient_checkpointing", "--lora_dropout", "0.1"]
    runs = [align(name, *more) for name in ("bf16", "bf16-again")]
    assert capsys.readouterr().out.count("shares the policy's base model") == 2
    assert_same_run(*runs)
