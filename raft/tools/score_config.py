"""The flags of ``raft score``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import argument
from raft.rewards.config import RemoteCodeConfig, RewardConfig


@dataclass
class FileOptions:
    """Files"""

    dataset_path: str = argument(
        "",
        "What to score: conversations, prompts with responses, preference pairs, plain texts, or the samples.jsonl of "
        "a run; file, directory or hub name.",
        required=True,
    )
    output_file: str | None = argument(
        None,
        "File to write, one JSON object a line; one that is there is replaced. Default: standard output.",
        aliases=("output_path",),
        metavar="FILE",
    )
    num_rows: int | None = argument(None, "Score only the first so many rows.")


@dataclass
class ScoreConfig:
    """Score texts, responses or preference pairs with a reward model."""

    files: FileOptions = field(default_factory=FileOptions)
    reward: RewardConfig = field(default_factory=RewardConfig)
    code: RemoteCodeConfig = field(default_factory=RemoteCodeConfig)

    examples: ClassVar[tuple[str, ...]] = (
        "raft score --dataset_path pairs.jsonl --output_file scores.jsonl",
        "raft score --dataset_path responses.jsonl --reward_model_or_path output_models/reward/final > scores.jsonl",
        "raft score --dataset_path Anthropic/hh-rlhf --num_rows 500 --output_file scores.jsonl",
    )
