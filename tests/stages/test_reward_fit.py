"""``raft reward`` refuses, before it trains, what it could not load again; and reads no more than the model can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from raft import cli
from raft.rewards.reward_model import load_reward_model


def train(path: str | Path, preferences: str, run: Path, *flags: str) -> int:
    """One step, in this process; gives the exit code."""
    given = ["--model_name_or_path", str(path), "--dataset_path", preferences, "--output_dir", str(run)]
    return cli.main(["reward", *given, "--dtype", "fp32", "--max_steps", "1", *flags])


@pytest.fixture
def path(tiny_model: str, tmp_path: Path) -> Path:
    """A language model of its own for a test to change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("kind", [RobertaForMaskedLM, RobertaForSequenceClassification])
@pytest.mark.parametrize("flags", [[], ["--no_use_lora"]])
def test_encoders_are_not_trained(
    tiny_model: str, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, flags: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    kind(RobertaConfig(vocab_size=len(tokenizer), num_labels=1, **shape)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    assert train(tmp_path / "encoder", preferences, tmp_path / "run", "--max_length", "60", *flags) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"raft reward: error: --model_name_or_path: {tmp_path / 'encoder'}: its classifier "
        "(RobertaForSequenceClassification) pools by itself, as those of encoders do; raft reward trains decoders, "
        "whose score is read at one token."
    )


def test_more_tokens_than_the_embedding_has_rows(
    path: Path, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    num_rows = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(path)
    assert train(path, preferences, tmp_path / "run") == 2
    found = f"--model_name_or_path: {path}: its tokenizer has token ids up to {num_rows}, its embedding {num_rows} rows"
    assert found in capsys.readouterr().err


def test_more_tokens_asked_for_than_the_model_has_positions(
    path: Path, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(path, preferences, tmp_path / "run", "--max_length", "1024") == 2
    assert "--max_length: found 1024, allowed are 8 to 512, the positions of the model" in capsys.readouterr().err


def test_the_default_length_is_no_more_than_the_model_has_positions(
    path: Path, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 40}))
    rows = [json.loads(line) for line in Path(preferences).read_text().splitlines()]
    rows = [{**row, "chosen": row["chosen"] * 10} for row in rows]  # none of which 40 tokens hold
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(path, str(pairs), tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "--max_length: reads 40 tokens instead of 512, since the model has no more positions\n" in said
    assert "to train on: 21 pairs; 21 x truncated\n" in said
    final = tmp_path / "run/final"
    assert json.loads((final / "reward_model.json").read_text())["max_length"] == 40
    load_reward_model(str(final), base=None, dtype="fp32", batch_size=4, test=False)


def test_a_weight_of_margins_that_no_row_has(
    tiny_model: str, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, preferences, tmp_path / "run", "--margin_weight", "1") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"--margin_weight: found 1, but no row of {preferences} has a margin.")
    assert not (tmp_path / "run/final").exists()
