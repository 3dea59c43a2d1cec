"""The flags of ``raft evaluate-reward``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import argument
from raft.config import require
from raft.functional.probes import PROBES
from raft.rewards.config import RemoteCodeConfig, RewardConfig


@dataclass
class PairOptions:
    """Preference pairs"""

    dataset_path: str = argument(
        "", "Preference pairs: file, directory or hub name, in any format of docs/data.md.", required=True
    )
    validation_split_percentage: float = argument(
        0.0, "Take only the last so many percent of the rows, those that raft reward holds out; 0 takes all."
    )
    num_rows: int | None = argument(None, "Use only the first so many pairs (before the split).")


@dataclass
class MeasureOptions:
    """Measures"""

    num_probed_pairs: int | None = argument(
        None,
        f"Pairs whose chosen response is also scored in {len(PROBES)} changed versions (padded, cut, emptied, "
        "exchanged), spread evenly over the data; none is all, 0 skips this.",
    )
    num_buckets: int = argument(4, "Buckets of accuracy by margin, of about equally many pairs.")
    length_tolerance: float = argument(
        25.0, "Pairs count as matched in length if it differs by at most so many percent of the longer one."
    )

    def __post_init__(self) -> None:
        require(
            self.num_probed_pairs is None or self.num_probed_pairs >= 0,
            f"--num_probed_pairs: found {self.num_probed_pairs}, allowed are integers from 0.",
        )
        require(self.num_buckets >= 1, f"--num_buckets: found {self.num_buckets}, allowed are integers from 1.")
        require(
            0 <= self.length_tolerance < 100,
            f"--length_tolerance: found {self.length_tolerance}, allowed is 0 to below 100.",
        )


@dataclass
class ReportOptions:
    """Report"""

    output_dir: str | None = argument(
        None,
        "Where evaluation.json, .md, .png and pairs.jsonl go, in place of earlier ones; none is "
        "output_models/evaluate-reward-DATE-TIME.",
        metavar="DIRECTORY",
    )
    update_card: list[str] = argument(
        [], "Markdown files to write the result into, between two comments (at the end if there are none).",
        metavar="FILE",
    )  # fmt: skip
    card_figure: str | None = argument(
        None, "Picture of the cards; none is evaluation.png beside the first of them.", metavar="FILE"
    )


@dataclass
class EvaluateRewardConfig:
    """Measure how far a reward can be trusted, on preference pairs."""

    pairs: PairOptions = field(default_factory=PairOptions)
    reward: RewardConfig = field(default_factory=RewardConfig)
    code: RemoteCodeConfig = field(default_factory=RemoteCodeConfig)
    measures: MeasureOptions = field(default_factory=MeasureOptions)
    report: ReportOptions = field(default_factory=ReportOptions)

    examples: ClassVar[tuple[str, ...]] = (
        "raft evaluate-reward --dataset_path pairs.jsonl --reward_model_or_path output_models/reward/final "
        "--validation_split_percentage 10",
        "raft evaluate-reward --dataset_path unseen.jsonl --update_card data/reward_model/README.md",
    )
