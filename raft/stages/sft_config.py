"""The flags of ``raft sft``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import DRY_RUN, argument
from raft.config import LoraConfig, ModelConfig, RunConfig, TrainingConfig, require
from raft.data.encoding import Overlong


@dataclass
class SupervisedDataConfig:
    """Data"""

    dataset_path: str = argument(
        "", "Conversations or plain text: file, directory or hub name, in any format of docs/data.md.", required=True
    )
    validation_split_percentage: float = argument(0.0, "Hold out the last so many percent of the rows.")
    max_length: int = argument(1024, "Tokens of a row, at most.", aliases=("block_size",))
    overlong: Overlong = argument(
        "truncate",
        "Rows over max_length: truncate (conversations at the end; texts are cut into several rows) or drop.",
    )
    packing: bool = argument(
        True, "Plain texts only: put several documents into a row, without attention from one to another."
    )
    num_rows: int | None = argument(None, "Use only the first so many rows (before the split).")
    save_steps: int = argument(
        0, "Write a checkpoint, for --resume, every so many optimizer steps; 0 is only when asked to stop."
    )

    def __post_init__(self) -> None:
        require(self.max_length >= 2, f"--max_length: found {self.max_length}, allowed are integers from 2.")


@dataclass
class SFTConfig:
    """Supervised fine-tuning of a language model, full or LoRA."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    run: RunConfig = field(default_factory=RunConfig)

    also: ClassVar[tuple[tuple[str, str], ...]] = (DRY_RUN,)
    examples: ClassVar[tuple[str, ...]] = (
        "raft sft --dataset_path conversations.jsonl",
        "raft sft --dataset_path alpaca.json --use_lora --learning_rate 2e-4 --validation_split_percentage 5",
        "raft sft --model_name_or_path my-7b --dataset_path data/ --deepspeed scripts/deepspeed/zero3.json",
    )
