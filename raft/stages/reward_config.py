"""The flags of ``raft reward``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from raft.arguments import DRY_RUN, argument
from raft.config import HeadInit, LoraConfig, ModelConfig, RunConfig, TrainingConfig, require
from raft.data.encoding import Overlong


@dataclass
class PreferenceConfig:
    """Preference data"""

    dataset_path: str = argument(
        "", "Preference pairs: file, directory or hub name, in any format of docs/data.md.", required=True
    )
    validation_split_percentage: float = argument(10.0, "Hold out the last so many percent of the rows.")
    max_length: int = argument(
        512,
        "Tokens of prompt and response together, at most. More than the model has positions for is refused; at the "
        "default, it reads as many as it has.",
    )
    overlong: Overlong = argument(
        "truncate", "Pairs over max_length: truncate (the start of the prompt is cut) or drop."
    )
    margin_weight: float = argument(0.0, "Weight of the margin column in the loss, for data that has one.")
    label_smoothing: float = argument(0.0, "Share of the labels that is assumed to be wrong, 0 to below 0.5.")
    centering: float = argument(0.0, "Weight of the penalty (chosen + rejected)^2, which keeps scores near 0.")
    score_head_init: HeadInit = argument(
        "transformers",
        "Start of a new score head: zero; small is normal with deviation 1 / (hidden size + 1); transformers is its "
        "own, of deviation initializer_range. A head that the model brings along is kept.",
    )
    share_prompts: bool = argument(
        True,
        "Run the tokens that chosen and rejected begin with through the model once, where that is less work and the "
        "model can (attention sdpa or eager, no sliding window). Scores are the same.",
    )
    num_rows: int | None = argument(None, "Use only the first so many pairs (before the split).")
    num_stored_examples: int = argument(
        4, "Held-out pairs to store with the model, texts and scores, for its self-test; 0 is none."
    )
    save_steps: int = argument(
        0, "Write a checkpoint, for --resume, every so many optimizer steps; 0 is only when asked to stop."
    )

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 0.5,
            f"--label_smoothing: found {self.label_smoothing}, allowed is 0 to below 0.5.",
        )
        require(self.max_length >= 8, f"--max_length: found {self.max_length}, allowed are integers from 8.")
        for name in ("margin_weight", "centering", "num_stored_examples"):
            require(getattr(self, name) >= 0, f"--{name}: found {getattr(self, name)}, allowed is 0 or more.")

    def within(self, context: int | None) -> PreferenceConfig:
        """The same flags, but with no more tokens by default than a model has positions for; None is any number.

        Raises:
            UserError: if a flag asks for more.
        """
        if context is None or self.max_length <= context:
            return self
        require(
            self.max_length == PreferenceConfig.max_length,
            f"--max_length: found {self.max_length}, allowed are 8 to {context}, the positions of the model.",
        )
        return replace(self, max_length=context)


@dataclass
class RewardModelingConfig:
    """Train a reward model on preference pairs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: PreferenceConfig = field(default_factory=PreferenceConfig)
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(use_lora=True))
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(learning_rate=3e-4, lr_scheduler_type="cosine", warmup_ratio=0.03)
    )
    run: RunConfig = field(default_factory=RunConfig)

    also: ClassVar[tuple[tuple[str, str], ...]] = (DRY_RUN,)
    examples: ClassVar[tuple[str, ...]] = (
        "raft reward --dataset_path pairs.jsonl",
        "raft reward --model_name_or_path output_models/sft/final --dataset_path Anthropic/hh-rlhf --eval_steps 100",
        "raft reward --dataset_path pairs.jsonl --no_use_lora --learning_rate 1e-5 --dtype fp32",
    )
