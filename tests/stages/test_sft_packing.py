"""``raft sft`` on texts packed for models that read across documents, and on token ids without an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from raft import cli
from tests.conftest import SENTENCES, build_tokenizer, run_raft
from tests.stages.runs import read_metrics

NOT_PACKED = "plain texts are not packed"


def _opt(size: int) -> Any:
    config = OPTConfig(
        vocab_size=size, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, ffn_dim=64,
        num_attention_heads=4, max_position_embeddings=512, init_std=0.2, dropout=0.0,
    )  # fmt: skip
    return OPTForCausalLM(config)


def _falcon(size: int) -> Any:
    return FalconForCausalLM(
        FalconConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2)
    )


def _save(make: Callable[[int], Any], directory: Path) -> str:
    torch.manual_seed(0)
    make(len(build_tokenizer(directory))).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def models(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of tiny models by architecture."""
    root = tmp_path_factory.mktemp("architectures")
    return {"llama": tiny_model, "opt": _save(_opt, root / "opt"), "falcon": _save(_falcon, root / "falcon")}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight plain texts of different lengths."""
    words = " ".join(SENTENCES).split()
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(words[i : 4 + 4 * i])}) + "\n" for i in range(8)))
    return path


def flags(model: str, data: Path) -> list[object]:
    """Three steps over all texts at once."""
    return [
        *("sft", "--model_name_or_path", model, "--dataset_path", data, "--dtype", "fp32", "--max_length", 200),
        *("--learning_rate", 2e-3, "--num_train_epochs", 3, "--per_device_train_batch_size", 8),
    ]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.reports.curves.draw_training_curves", lambda directory: None)


def run_here(*command: object, code: int = 0) -> None:
    """Run ``raft`` in this process."""
    assert cli.main([str(one) for one in command]) == code


def num_rows(run: Path) -> int:
    return json.loads((run / "summary.json").read_text())["num_train_rows"]


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run, "train")]


# On a CPU, OPT is told by the attention of each document, which recomputed layers do without.
@pytest.mark.parametrize(
    ("name", "further", "packed"),
    [
        ("llama", ["--gradient_checkpointing"], True),
        ("opt", [], True),
        ("opt", ["--gradient_checkpointing"], False),
        ("falcon", [], False),
    ],
    ids=["llama", "opt joined", "opt", "falcon"],
)
def test_the_loss_is_that_without_packing(
    models: dict[str, str],
    texts: Path,
    name: str,
    further: list[object],
    packed: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*flags(models[name], texts), *further]
    run_here(*command, "--output_dir", tmp_path / "run")
    printed = capsys.readouterr().out
    run_here(*command, "--no_packing", "--output_dir", tmp_path / "unpacked")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "unpacked"), rel=1e-5)
    assert (num_rows(tmp_path / "run") < num_rows(tmp_path / "unpacked") == 8) is packed
    told = [line for line in printed.splitlines() if NOT_PACKED in line]
    assert len(told) == (not packed)
    assert all(f"{models[name]} ({name})" in line and line.endswith("-> 8 training rows") for line in told)


def test_two_ranks_do_the_same(models: dict[str, str], texts: Path, tmp_path: Path) -> None:
    command = [*flags(models["falcon"], texts), "--per_device_train_batch_size", 4]
    done = run_raft(*command, "--output_dir", tmp_path / "two", num_processes=2)
    assert done.stdout.count(NOT_PACKED) == 1
    run_here(*flags(models["falcon"], texts), "--no_packing", "--output_dir", tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_a_token_id_without_an_embedding_is_refused(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = AutoModelForCausalLM.from_pretrained(tiny_model).get_input_embeddings().weight.shape[0]
    rows = [{"prompt": "Hi", "response": "Yes", "response_tokens": [7, last]} for last in (size - 1, size)]
    data = tmp_path / "selected.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_here(*flags(tiny_model, data), "--output_dir", tmp_path / "run", code=2)
    assert f"selected.jsonl:2: found token id {size}, allowed are ids below {size}" in capsys.readouterr().err
    data.write_text(json.dumps(rows[0]) + "\n")
    run_here(*flags(tiny_model, data), "--output_dir", tmp_path / "run")


def test_a_run_does_not_remove_what_it_is_to_read(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "run/selected.jsonl"
    data.parent.mkdir()
    (data.parent / "config.yaml").write_text("{}")
    (data.parent / "environment.json").write_text('{"raft": "0"}')
    data.write_text(json.dumps({"prompt": "Hi", "response": "Yes"}) + "\n")
    again = [*flags(tiny_model, data), "--output_dir", data.parent, "--overwrite_output_dir"]
    run_here(*again, code=2)
    assert f"{data.parent} is to be removed, and --dataset_path {data} is in it" in capsys.readouterr().err
    assert data.exists()


@pytest.mark.parametrize("trained_on", [True, False], ids=["in the data", "for padding alone"])
def test_a_token_that_the_model_was_not_resized_for(
    trained_on: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused in the data; a pad token is masked, so that another one does as well."""
    model = _save(_opt, tmp_path / "model")
    tokenizer = build_tokenizer(tmp_path / "model")
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    assert tokenizer.pad_token_id == size
    tokenizer.save_pretrained(model)
    texts = tmp_path / "texts.jsonl"
    written = ["Hello there.", SENTENCES[1], "Bread <|new|>" if trained_on else "Bread"]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    command = [*flags(model, texts), "--no_packing", "--gradient_checkpointing", "--output_dir", tmp_path / "run"]
    run_here(*command, code=2 if trained_on else 0)
    if trained_on:
        assert f"--dataset_path: found token id {size}, allowed are ids below {size}" in capsys.readouterr().err
        return
    without = [*command[:-3], "--output_dir", tmp_path / "joined"]  # nothing is padded
    run_here(*without)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "joined"), rel=1e-5)
