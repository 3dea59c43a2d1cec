"""The flags of ``raft compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raft.arguments import argument
from raft.config import require
from raft.rewards.config import RewardConfig
from raft.rollout.answering_config import AnswerConfig, LoadingConfig

SUFFIXES = (".md", ".html", ".json")


@dataclass
class CompareOptions:
    """Models and prompts"""

    models: list[str] = argument(
        [],
        "Directories or hub names of models, LoRA adapters, or run directories (their final/); changes count from the "
        "first.",
        metavar="MODEL",
        positional=True,
        required=True,
    )
    dataset_path: str = argument(
        "data/prompts/held_out.jsonl", "Prompts: file, directory or hub name; responses in it are ignored."
    )
    num_rows: int | None = argument(None, "Use only the first so many prompts.")
    output_file: list[str] = argument(
        [], "Files to write, .md, .html or .json; those that are there are replaced. none prints Markdown.",
        metavar="FILE",
    )  # fmt: skip
    score: bool | None = argument(
        None, "Score the answers; unless said, they are where a flag under Reward is not its default."
    )
    inference_batch_size_per_device: int | None = argument(
        None, "Answers that a rank draws at once. Default: up to 256 on a CPU and 1,024 on a GPU, as memory allows."
    )

    def __post_init__(self) -> None:
        for file in self.output_file:
            require(
                Path(file).suffix in SUFFIXES and not Path(file).is_dir(),
                f"--output_file: found {file}, expected a file that ends with {', '.join(SUFFIXES)}.",
            )
        rows = self.inference_batch_size_per_device
        require(
            rows is None or rows >= 1, f"--inference_batch_size_per_device: found {rows}, allowed are integers from 1."
        )


@dataclass
class CompareConfig:
    """Put the answers of several models to the same prompts side by side."""

    compare: CompareOptions = field(default_factory=CompareOptions)
    answers: AnswerConfig = field(default_factory=lambda: AnswerConfig(temperature=0.5))
    reward: RewardConfig = field(default_factory=RewardConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)

    examples: ClassVar[tuple[str, ...]] = (
        "raft compare output_models/SmolLM2-135M-Instruct output_models/first_run --output_file comparison.html",
        "raft compare run-a run-b run-c --dataset_path prompts.jsonl --score --output_file all.md all.html all.json",
    )
