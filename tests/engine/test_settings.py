"""The user's DeepSpeed JSON and the flags: who may say what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft.config import TrainingConfig
from raft.engine.settings import OURS, deepspeed_config
from raft.errors import UserError
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "scripts/deepspeed").glob("*.json"))


def merge(tmp_path: Path, settings: object, *, bf16: bool = False, **flags: Any) -> dict[str, Any]:
    """The configuration that DeepSpeed gets for a JSON file with ``settings``."""
    file = tmp_path / "settings.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return deepspeed_config(TrainingConfig(deepspeed=str(file), **flags), bf16=bf16)


def test_without_a_file_it_is_zero_0() -> None:
    config = deepspeed_config(TrainingConfig(), bf16=True)
    assert config["zero_optimization"] == {"stage": 0}
    assert config["bf16"] == {"enabled": True}


def test_flags_are_passed_on(tmp_path: Path) -> None:
    flags = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5, "max_grad_norm": 0.25}
    config = merge(tmp_path, {"zero_optimization": {"stage": 2}, "wall_clock_breakdown": False}, **flags)
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_clipping"] == 0.25
    assert config["bf16"] == {"enabled": False}
    # The engine accumulates by itself: DeepSpeed would average averages.
    assert config["gradient_accumulation_steps"] == 1
    assert config["zero_optimization"] == {"stage": 2}
    assert config["wall_clock_breakdown"] is False


def test_auto_leaves_the_choice_to_the_flags(tmp_path: Path) -> None:
    settings = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": "auto"},
        "optimizer": {"type": "auto", "params": {"lr": "auto"}},
        "scheduler": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e9},
    }
    config = merge(tmp_path, settings, bf16=True, max_grad_norm=0.5)
    assert config["zero_optimization"] == {"stage": 3, "stage3_max_live_parameters": 1e9}
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_clipping"] == 0.5
    assert not {"fp16", "optimizer", "scheduler", "train_batch_size"} & set(config)
    assert "auto" not in json.dumps(config)


@pytest.mark.parametrize("key", sorted(OURS))
def test_what_a_flag_sets_is_refused_with_the_flags_name(tmp_path: Path, key: str) -> None:
    value = {"type": "AdamW"} if key in ("optimizer", "scheduler") else {"enabled": True} if "16" in key else 2
    with pytest.raises(UserError) as caught:
        merge(tmp_path, {"zero_optimization": {"stage": 2}, key: value})
    assert f'--deepspeed {tmp_path}/settings.json: key "{key}" is set by {OURS[key]}' in str(caught.value)
    flags = [word for word in OURS[key].replace(",", "").split() if word.startswith("--") and "..." not in word]
    known = {f"--{name}" for name in vars(TrainingConfig())} | {"--dtype"}
    assert flags
    assert set(flags) <= known


def test_a_precision_that_is_switched_off_is_accepted(tmp_path: Path) -> None:
    assert merge(tmp_path, {"fp16": {"enabled": False}, "bf16": {"enabled": False}}, bf16=True)["bf16"] == {
        "enabled": True
    }


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"--deepspeed: there is no file zero9\.json"):
        deepspeed_config(TrainingConfig(deepspeed="zero9.json"), bf16=False)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--deepspeed .*: cannot be read \(Is a directory"):
        deepspeed_config(TrainingConfig(deepspeed=str(tmp_path)), bf16=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 2},}', r"not JSON \(.*, column 3\d\)"),
        ("", "not JSON"),
        ("[1, 2]", "found list, expected a JSON object"),
        ('{"zero_optimization": 2}', "found no JSON object with DeepSpeed settings"),
    ],
)
def test_bad_json_is_a_users_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"--deepspeed .*settings\.json: {message}"):
        merge(tmp_path, text)


@pytest.mark.parametrize("stage", [4, -1, "two", True, 2.5])
def test_an_unknown_stage_is_a_users_error(tmp_path: Path, stage: object) -> None:
    with pytest.raises(UserError, match=rf'"stage".*found {json.dumps(stage)}, allowed are 0, 1, 2 and 3'):
        merge(tmp_path, {"zero_optimization": {"stage": stage}})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_file_is_accepted_and_named_after_its_stage(file: Path) -> None:
    """That each builds an engine that trains is in test_engine."""
    config = deepspeed_config(TrainingConfig(deepspeed=str(file)), bf16=False)
    zero = config["zero_optimization"]
    assert file.stem.startswith(f"zero{zero['stage']}")
    assert ("offload_optimizer" in zero) == ("offload" in file.stem)
    # DeepSpeed's own Adam for the CPU would have to be compiled first.
    assert ("offload" in file.stem) == (config.get("zero_force_ds_cpu_optimizer") is False)


def test_all_stages_are_shipped() -> None:
    assert {f"zero{stage}" for stage in range(4)} | {"zero2_offload", "zero3_offload"} <= {f.stem for f in SHIPPED}
