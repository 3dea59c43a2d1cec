"""The flags of ``raft merge``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import argument
from raft.precision import StoredDtype


@dataclass
class AdapterOptions:
    """Adapter"""

    adapter: str = argument(
        "",
        "Directory of the LoRA adapter, of a language model or of a reward model.",
        aliases=("lora_model_path", "lora_path"),
        metavar="DIRECTORY",
        required=True,
    )
    model_name_or_path: str | None = argument(
        None, "Directory or hub name of the base model. Default: the one the adapter names.", metavar="MODEL"
    )
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model. Read that code first.")


@dataclass
class MergedOptions:
    """Merged model"""

    output_dir: str = argument("", "Directory to write.", metavar="DIRECTORY", required=True)
    overwrite_output_dir: bool = argument(False, "Replace the model that is in --output_dir.")
    dtype: StoredDtype = argument(
        "fp32",
        "Precision to store: fp32 loses nothing, bf16 is half as large and rounds weights to 8 bits, which is more "
        "than a lightly trained adapter moves most of them.",
    )


@dataclass
class MergeConfig:
    """Merge a LoRA adapter into its base model."""

    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    merged: MergedOptions = field(default_factory=MergedOptions)

    examples: ClassVar[tuple[str, ...]] = (
        "raft merge --adapter output_models/sft_lora/final --output_dir output_models/sft_merged",
        "raft merge --adapter data/reward_model --output_dir output_models/reward_merged --dtype bf16",
        "raft merge --adapter my-adapter --model_name_or_path my-base --output_dir merged",
    )
