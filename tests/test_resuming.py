"""Which settings a resumed run may change; what it takes over from the one before."""

from __future__ import annotations

from typing import Any

import pytest

from raft.arguments import from_dict, parse, to_dict
from raft.errors import UserError
from raft.resuming import FREE, FROM_HERE, refuse_changes, take_over
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
    ],
)
def test_what_would_make_another_run_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_changes(config(**changes), to_dict(config()))
    assert str(error.value).startswith(told)
    assert "it would not be the same run. What may change: docs/reliability.md." in str(error.value)


def test_what_no_sample_or_weight_depends_on_may_change() -> None:
    changed = config(logging_steps=5, save_steps=3, save_total_limit=2, output_dir="moved", resume="true")
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


def test_every_name_that_may_change_is_a_flag() -> None:
    flags = {
        name
        for one in (AlignConfig, SFTConfig, RewardModelingConfig)
        for group in to_dict(from_dict(one, {} if one is AlignConfig else {"dataset_path": "x"})).values()
        for name in group
    }
    assert flags >= FREE | FROM_HERE


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
