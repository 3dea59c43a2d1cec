"""From a user's DeepSpeed JSON and our flags to the configuration of ``deepspeed.initialize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raft import json_file
from raft.config import TrainingConfig
from raft.errors import UserError

# Set by flags, or by the engine's contract; a JSON written for transformers has "auto" there.
OURS = {
    "train_batch_size": "--per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "gradient_clipping": "--max_grad_norm",
    "optimizer": "--learning_rate, --weight_decay and --adam_...",
    "scheduler": "--lr_scheduler_type and --warmup_ratio",
    "bf16": "--dtype",
    "fp16": "--dtype",
}


def deepspeed_config(training: TrainingConfig, *, bf16: bool) -> dict[str, Any]:
    """Merge the JSON of ``--deepspeed`` with what the flags say.

    ``gradient_accumulation_steps`` is 1 for DeepSpeed whatever the flag: the engine sets the boundary itself and
    normalises the loss over the whole step, which DeepSpeed's own average of averages would not.

    Raises:
        UserError: if the file is missing, no JSON object, or sets what a flag sets.
    """
    config = _without_auto(_read(training.deepspeed)) if training.deepspeed else {}
    for key in config:
        if key in OURS and not (isinstance(config[key], dict) and config[key].get("enabled") is False):
            raise UserError(
                f'--deepspeed {training.deepspeed}: key "{key}" is set by {OURS[key]}; remove it from the file.'
            )
    zero = config.setdefault("zero_optimization", {"stage": 0})
    if "offload_optimizer" in zero:
        # Plain torch AdamW on the CPU: DeepSpeed's own would have to be compiled first.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config | {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
    }


def _read(path: str) -> dict[str, Any]:
    if not Path(path).exists():
        raise UserError(f"--deepspeed: there is no file {path}.")
    config = json_file.read_object(Path(path), "--deepspeed")
    if not isinstance(config.get("zero_optimization", {}), dict):
        raise UserError(f"--deepspeed {path}: found no JSON object with DeepSpeed settings.")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage != "auto" and (type(stage) is not int or stage not in range(4)):
        raise UserError(
            f'--deepspeed {path}: "stage" of "zero_optimization": found {json.dumps(stage)}, allowed are 0, 1, 2 and 3.'
        )
    return config


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in config.items():
        if isinstance(value, dict):
            value = _without_auto(value)
            if not value:
                continue
        if value != "auto":
            plain[key] = value
    return plain
