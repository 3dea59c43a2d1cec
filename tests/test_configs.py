"""The configuration files that come with the scripts are understood as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.arguments import parse
from raft.stages.align_config import AlignConfig

PAPER = Path(__file__).parent.parent / "scripts" / "configs" / "paper_hh_llama7b.yaml"
CONFIGS = sorted((Path(__file__).parent.parent / "scripts" / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_is_understood(path: Path) -> None:
    parse(AlignConfig, ["--config", str(path)], prog="raft align")


def test_the_papers_settings() -> None:
    """arXiv 2304.06767: b=2048, K=32, temperature 1, two epochs, lr 2e-5, 256 and 128 tokens."""
    config = parse(AlignConfig, ["--config", str(PAPER)], prog="raft align")
    assert (config.raft.raft_batch_size, config.raft.k, config.sampling.temperature) == (2048, 32, 1.0)
    assert (config.training.num_train_epochs, config.training.learning_rate) == (2, 2e-5)
    assert (config.sampling.prompt_max_length, config.sampling.output_max_length) == (256, 128)
