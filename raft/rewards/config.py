"""The flags of every command that scores."""

from __future__ import annotations

from dataclasses import dataclass

from raft.arguments import argument
from raft.config import require
from raft.precision import Dtype


@dataclass
class RewardConfig:
    """Reward"""

    reward_model_or_path: str = argument(
        "data/reward_model",
        "Reward model: a sequence classifier (directory or hub name) or a LoRA adapter with score head (directory).",
        aliases=("reward_model_name_or_path",),
    )
    reward_base_model: str | None = argument(
        None, "Base model of a LoRA reward adapter; none is the one that the adapter names."
    )
    reward_batch_size: int = argument(32, "Texts that a rank scores at once.")
    reward_dtype: Dtype = argument(
        "auto",
        "Compute precision of the reward model's body; auto is bf16 where the hardware multiplies it, else fp32. Its "
        "head is fp32.",
    )
    reward_self_test: bool = argument(
        True, "Test the reward model when it is loaded: a second or so, and one sentence if its scores are not sound."
    )
    reward_contract: str | None = argument(
        None, "Read the reward model by this reward_model.json instead of the one beside it.", metavar="FILE"
    )

    def __post_init__(self) -> None:
        require(
            self.reward_batch_size >= 1,
            f"--reward_batch_size: found {self.reward_batch_size}, allowed are integers from 1.",
        )


@dataclass
class RemoteCodeConfig:
    """Code that comes with models"""

    trust_remote_code: bool = argument(False, "Run Python code that comes with the model. Read that code first.")
