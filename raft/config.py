"""Settings shared by the commands. One group of flags a class; a sentence a field, which becomes ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raft.arguments import argument
from raft.errors import UserError
from raft.precision import Dtype

Template = Literal["auto", "chat", "human_assistant", "raw"]
HeadInit = Literal["transformers", "zero", "small"]


def require(condition: bool, message: str) -> None:
    """Refuse a setting: raise UserError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


@dataclass
class ModelConfig:
    """Model"""

    model_name_or_path: str = argument(
        "output_models/SmolLM2-135M-Instruct", "Directory or hub name of the model to train."
    )
    dtype: Dtype = argument(
        "auto",
        "Compute precision; auto is bf16 where the hardware multiplies it, else fp32. Master weights and optimizer "
        "state are fp32 either way.",
    )
    template: Template = argument(
        "auto",
        "How messages become text: chat is the tokenizer's own template, human_assistant is ###Human/###Assistant "
        "markup, raw is the bare text. auto is chat where the tokenizer has a template, else human_assistant.",
    )
    attn_implementation: str = argument(
        "auto",
        "Attention implementation of transformers: sdpa, eager or flash_attention_2; auto is sdpa where the model has "
        "it, else eager.",
    )
    gradient_checkpointing: bool = argument(False, "Recompute activations in the backward pass: slower, less memory.")
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model. Read that code first.")

    def __post_init__(self) -> None:
        require(bool(self.model_name_or_path), "--model_name_or_path: found an empty string.")


@dataclass
class LoraConfig:
    """LoRA"""

    use_lora: bool = argument(False, "Train low-rank adapters and keep the base model frozen.")
    lora_r: int = argument(16, "Rank of the adapters.")
    lora_alpha: float = argument(32.0, "Scale of the adapters: their output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = argument(0.0, "Dropout on the input of the adapters while training.")
    lora_target_modules: list[str] = argument(
        ["all-linear"],
        "Modules to adapt, by name; all-linear is every linear layer but the output head.",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        require(self.lora_r > 0, f"--lora_r: found {self.lora_r}, allowed are integers from 1.")
        require(
            0 < self.lora_alpha < float("inf"),
            f"--lora_alpha: found {self.lora_alpha:g}, allowed are finite numbers above 0.",
        )
        require(0 <= self.lora_dropout < 1, f"--lora_dropout: found {self.lora_dropout}, allowed is 0 to below 1.")


@dataclass
class TrainingConfig:
    """Training"""

    per_device_train_batch_size: int = argument(8, "Most sequences (pairs in raft reward) in one pass of a rank.")
    gradient_accumulation_steps: int = argument(1, "Forward and backward passes of a rank for one optimizer step.")
    num_train_epochs: int = argument(
        1, "Passes over the training data; in raft align, over the responses kept in an iteration."
    )
    max_steps: int = argument(-1, "Stop after this many optimizer steps; -1 is no limit.")
    learning_rate: float = argument(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = argument("linear", "Schedule of the learning rate, by its name in transformers.")
    warmup_ratio: float = argument(
        0.0, "Share of all optimizer steps in which the learning rate rises from 0 to its peak."
    )
    weight_decay: float = argument(0.0, "Weight decay of AdamW (decoupled).")
    adam_beta1: float = argument(0.9, "Decay of Adam's first moment.")
    adam_beta2: float = argument(0.999, "Decay of Adam's second moment.")
    adam_epsilon: float = argument(1e-8, "Added to the denominator of Adam.")
    max_grad_norm: float = argument(1.0, "Clip the gradient to this norm; 0 does not clip.")
    nonfinite_steps: Literal["stop", "skip"] = argument(
        "stop",
        "What to do where the loss or gradient of an optimizer step is nan or infinite: stop, or skip the step. Its "
        "rows are written to nonfinite/ either way.",
    )
    max_nonfinite_steps: int = argument(5, "With --nonfinite_steps skip: stop at this many such steps in a row.")
    deepspeed: str | None = argument(
        None,
        "DeepSpeed JSON with ZeRO and offload settings, such as scripts/deepspeed/zero2.json; none is ZeRO stage 0.",
    )
    logging_steps: int = argument(1, "Write training metrics to metrics.jsonl every so many optimizer steps.")
    eval_steps: int = argument(
        0, "Evaluate every so many optimizer steps, besides start and end; 0 is at start and end only."
    )

    def __post_init__(self) -> None:
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "max_nonfinite_steps",
            "logging_steps",
        ):
            require(
                getattr(self, name) >= 1,
                f"--{name}: found {getattr(self, name)}, allowed are integers from 1.",
            )
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "eval_steps"):
            require(getattr(self, name) >= 0, f"--{name}: found {getattr(self, name)}, allowed is 0 or more.")
        require(0 <= self.warmup_ratio <= 1, f"--warmup_ratio: found {self.warmup_ratio}, allowed is 0 to 1.")
        for name in ("adam_beta1", "adam_beta2"):
            require(
                0 <= getattr(self, name) < 1,
                f"--{name}: found {getattr(self, name)}, allowed is 0 to below 1.",
            )
        require(
            self.max_steps == -1 or self.max_steps >= 1,
            f"--max_steps: found {self.max_steps}, allowed are -1 (all epochs) and integers from 1.",
        )

    def rows_per_step(self, num_processes: int) -> int:
        """Rows of one optimizer step, over micro-batches and ranks."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * num_processes


@dataclass
class RunConfig:
    """Run"""

    output_dir: str | None = argument(
        None, "Run directory, new or empty; none is output_models/COMMAND-DATE-TIME.", metavar="DIRECTORY"
    )
    overwrite_output_dir: bool = argument(False, "Delete the earlier run in --output_dir and start again.")
    resume: Literal["false", "true", "auto"] = argument(
        "false",
        "Continue the run in --output_dir where it was stopped: see docs/reliability.md. auto continues if there is a "
        "run, else starts one.",
        bare="true",
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = argument(
        ["tensorboard"],
        "Trackers that get every metric as it is logged. TensorBoard always does, below the run directory.",
    )
    seed: int = argument(0, "Seed of all randomness: data order, sampling, new weights.")

    def __post_init__(self) -> None:
        require(
            not (self.resume != "false" and self.overwrite_output_dir),
            "--resume and --overwrite_output_dir exclude each other.",
        )
        require(
            self.resume == "false" or self.output_dir is not None,
            "--resume needs --output_dir: the run to continue.",
        )
        require(0 <= self.seed < 2**31, f"--seed: found {self.seed}, allowed are integers from 0 to 2147483647.")


@dataclass
class SharedBaseConfig:
    """One base in memory"""

    share_base_model: bool | None = argument(
        None,
        "Read LoRA reward models and the KL penalty's reference off the LoRA policy's own base weights. none shares "
        "where it can and says so where it can not; true refuses to start there; false loads each apart.",
    )
