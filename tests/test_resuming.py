"""Which settings a resumed run may change; what it takes over from the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft.arguments import from_dict, parse, to_dict
from raft.config import TrainingConfig
from raft.errors import UserError
from raft.resuming import FREE, FROM_HERE, STEP, first_start, refuse_changes, settle_step, take_over
from raft.stages.align_config import AlignConfig
from raft.stages.reward_modeling import RewardModelingConfig
from raft.stages.sft import SFTConfig


def config(**settings: Any) -> AlignConfig:
    return from_dict(AlignConfig, settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "--seed: the run to be resumed has 0, found 1."),
        ({"temperature": 0.5}, "--temperature: the run to be resumed has 0.85, found 0.5."),
        ({"use_lora": True}, "--use_lora: the run to be resumed has false, found true."),
        ({"rollout_backend": "vllm"}, "--rollout_backend: the run to be resumed has native, found vllm."),
        ({"deepspeed": "zero2.json"}, "--deepspeed: the run to be resumed has none, found zero2.json."),
        # Else best/ could hold one policy and best_iteration name another, whose weights are gone.
        ({"best_max_kl": 0.1}, "--best_max_kl: the run to be resumed has none, found 0.1."),
        ({"best_min_distinct_2": 0.8}, "--best_min_distinct_2: the run to be resumed has none, found 0.8."),
        ({"best_max_length_ratio": 1.5}, "--best_max_length_ratio: the run to be resumed has none, found 1.5."),
    ],
)
def test_what_would_make_another_run_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_changes(config(**changes), to_dict(config()))
    assert str(error.value).startswith(told)
    assert "it would not be the same run. What may change: docs/reliability.md." in str(error.value)


def test_what_no_sample_or_weight_depends_on_may_change() -> None:
    changed = config(logging_steps=5, save_steps=3, save_total_limit=2, output_dir="moved", resume="true",
                     early_stopping="both", early_stopping_patience=5)  # fmt: skip
    assert refuse_changes(changed, to_dict(config())) == []


def test_discard_rules_may_change_for_the_iterations_to_come() -> None:
    changed = refuse_changes(config(discard_shorter_than=5, discard_regex=["#"]), to_dict(config()))
    assert changed == ["discard_regex", "discard_shorter_than"]
    # A longer run has another schedule: samples in the journal may be of a policy that it does not come to.
    assert refuse_changes(config(num_raft_iteration=20, max_steps=9), to_dict(config())) == [
        "num_raft_iteration", "max_steps",
    ]  # fmt: skip


def test_settings_that_an_earlier_version_did_not_know_are_no_change() -> None:
    recorded = to_dict(config())
    del recorded["training"]["adam_beta1"], recorded["discard"]
    refuse_changes(config(adam_beta1=0.8), recorded)


def test_runs_of_before_there_was_a_choice_drew_natively() -> None:
    recorded = to_dict(config())
    del recorded["backend"]
    assert refuse_changes(config(), recorded) == []
    with pytest.raises(UserError, match="--rollout_backend: the run to be resumed has native, found vllm"):
        refuse_changes(config(rollout_backend="vllm"), recorded)
    assert refuse_changes(config(rollout_backend="vllm"), {}) == [], "a new run"


def test_what_the_first_run_settled_by_its_hardware_is_taken_over() -> None:
    recorded = to_dict(config(dtype="bf16", inference_batch_size_per_device=128))
    resumed = config()
    take_over(resumed, recorded)
    assert (resumed.model.dtype, resumed.sampling.inference_batch_size_per_device) == ("bf16", 128)
    refuse_changes(resumed, recorded)
    said = config(dtype="fp32")
    take_over(said, recorded)
    assert said.model.dtype == "fp32"
    with pytest.raises(UserError, match="--dtype: the run to be resumed has bf16, found fp32"):
        refuse_changes(said, recorded)


def test_runs_of_before_scored_32_texts_at_once() -> None:
    recorded, resumed = to_dict(config(reward_batch_size=32)), config()
    take_over(resumed, recorded)
    assert resumed.reward.reward_batch_size == 32
    assert refuse_changes(resumed, recorded) == []


def test_every_name_that_may_change_is_a_flag() -> None:
    flags = {
        name
        for one in (AlignConfig, SFTConfig, RewardModelingConfig)
        for group in to_dict(from_dict(one, {} if one is AlignConfig else {"dataset_path": "x"})).values()
        for name in group
    }
    assert flags >= FREE | FROM_HERE | set(STEP)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "false"), (["--resume"], "true"), (["--resume", "true"], "true"), (["--resume", "auto"], "auto")],
)
def test_resume_on_the_command_line(arguments: list[str], expected: str) -> None:
    assert parse(AlignConfig, [*arguments, "--output_dir", "x"], prog="raft align").run.resume == expected


def test_resume_in_yaml_may_be_a_truth_value() -> None:
    assert config(resume=True, output_dir="x").run.resume == "true"
    with pytest.raises(UserError, match=r'--resume: found "maybe", expected one of false, true, auto'):
        parse(AlignConfig, ["--resume", "maybe", "--output_dir", "x"], prog="raft align")
    with pytest.raises(UserError, match="--resume needs --output_dir"):
        config(resume="auto")


def training(size: int, accumulation: int) -> TrainingConfig:
    return TrainingConfig(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)


STARTED = {"processes": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}  # 24 rows a step


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_same_command_on_other_processes_keeps_the_rows_of_a_step(processes: int, accumulation: int) -> None:
    settings = training(4, 3)
    told = settle_step(settings, STARTED, {}, processes)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (4, accumulation)
    assert settings.rows_per_step(processes) == 24
    assert (told is None) == (processes == 2)
    # What was settled is recorded; the command is still the one that it was.
    again = training(4, 3)
    settle_step(again, STARTED, {"training": vars(settings)}, processes)
    assert again == settings


def test_flags_that_keep_the_rows_of_a_step_may_change() -> None:
    settings = training(2, 6)
    told = settle_step(settings, STARTED, {"training": vars(training(4, 3))}, 2)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (2, 6)
    assert told is not None
    assert told.startswith(
        "on 2 processes (started on 2) with --per_device_train_batch_size 2 --gradient_accumulation_steps 6, which "
        "keeps 24 rows a step"
    )
    elsewhere = training(2, 6)  # the flags of its last start, on one process
    settle_step(elsewhere, STARTED, {"training": vars(settings)}, 1)
    assert elsewhere.gradient_accumulation_steps == 12


@pytest.mark.parametrize(
    ("size", "accumulation", "processes", "told"),
    [
        (4, 1, 2, "found 8: 4 .* --per_device_train_batch_size 4 --gradient_accumulation_steps 3 keeps 24"),
        (8, 1, 1, "found 8: 8 .* --per_device_train_batch_size 8 --gradient_accumulation_steps 3 keeps 24"),
        (4, 3, 4, "found 48: 4 .* --per_device_train_batch_size 3 --gradient_accumulation_steps 2 keeps 24"),
        (4, 3, 5, r"found 60: 4 .* Take a number of processes that divides them\."),
    ],
)
def test_another_number_of_rows_in_a_step_is_refused_with_what_fits(
    size: int, accumulation: int, processes: int, told: str
) -> None:
    settings = training(size, accumulation)
    begins = "--gradient_accumulation_steps: an optimizer step of the run to be resumed has 24 rows, "
    with pytest.raises(UserError, match=begins + told):
        settle_step(settings, STARTED, {"training": vars(training(4, 3))}, processes)
    assert settings == training(size, accumulation)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (json.dumps({"world_size": 8, "started_with": STARTED}), STARTED),
        ('{"world_size": 8}', STARTED | {"processes": 8}),  # of before it was recorded
        ("{}", STARTED | {"processes": 1}),
        (None, STARTED | {"processes": 1}),
        ('{"started_with": {"processes": 2}}', None),
        ('{"started_with": [2, 4, 3]}', None),
        ('{"world_size": 0}', None),
        ('{"world_size": true}', None),
    ],
)
def test_what_a_run_was_started_with(tmp_path: Path, environment: str | None, expected: dict[str, int] | None) -> None:
    if environment is not None:
        (tmp_path / "environment.json").write_text(environment)
    recorded = {"training": vars(training(4, 3))}
    if expected is not None:
        assert first_start(tmp_path, recorded, 1) == expected
    else:
        with pytest.raises(UserError, match="what its optimizer steps were made of is not as it was written"):
            first_start(tmp_path, recorded, 1)
