"""What a run measures of its policy, against the exported models and transformers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft import cli
from raft.arguments import parse
from raft.data.templates import ConversationTemplate
from raft.run_directory import read_jsonl
from raft.stages.align_config import AlignConfig
from raft.stages.align_measures import load_reference_texts, spread_evenly

Rows = list[dict[str, Any]]


@pytest.fixture
def align(
    talkative_model: str,
    tiny_reward_model: str,
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Run one small iteration after another in this process; gives the run directory."""
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
    settings: dict[str, object] = {
        "model_name_or_path": talkative_model, "reward_model_or_path": tiny_reward_model, "dataset_path": prompts,
        "eval_dataset_path": "none", "validation_split_percentage": 25, "num_raft_iteration": 2, "raft_batch_size": 4,
        "num_samples_per_prompt": 3, "output_min_length": 0, "output_max_length": 12, "num_train_epochs": 1,
        "per_device_train_batch_size": 2, "learning_rate": 3e-3, "lr_scheduler_type": "constant",
        "eval_every_n_iterations": 0, "save_every_n_iterations": 0, "dtype": "fp32", "reward_dtype": "fp32",
    }  # fmt: skip

    def run(name: str = "run", *switches: str, code: int = 0, **changes: object) -> Path:
        given = settings | changes | {"output_dir": tmp_path / name}
        arguments = [text for flag, value in given.items() for text in (f"--{flag}", str(value))]
        assert cli.main(["align", *arguments, *switches]) == code
        return tmp_path / name

    return run


def log_of(run: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Metrics of the iterations and of the held-out evaluations."""
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "iteration" in row]
    held_out = {row["iteration"]: row for row in rows if "held_out/reward_mean" in row}
    return {row["iteration"]: row for row in rows if "reward/all_mean" in row}, held_out


def all_logprobs(model: Any, tokenizer: Any, row: dict[str, Any]) -> torch.Tensor:
    """Of every token at every place of a row's response, (K, V), unpadded and in double precision."""
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    prompt, response = tokenizer(text).input_ids, row["response_tokens"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double()
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("lora", [False, True])
def test_kl_and_entropy_are_those_of_the_exported_model(align: Any, talkative_model: str, lora: bool) -> None:
    run = align("run", *["--use_lora"] * lora)
    iterations, held_out = log_of(run)
    for record, key in ((iterations[1], "kl/per_token"), (held_out[0], "held_out/kl")):
        assert record[key] == pytest.approx(0.0, abs=1e-6)
    assert iterations[2]["kl/per_token"] > 1e-4
    assert iterations[2]["kl/per_response"] > iterations[2]["kl/per_token"]

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    initial, final = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (talkative_model, talkative_model if lora else run / "final")
    )
    if lora:
        from peft import PeftModel

        final = PeftModel.from_pretrained(final, str(run / "final")).eval()
    entropies, distances = [], []
    for row in read_jsonl(run / "held_out/0002.jsonl"):
        p, p0 = (all_logprobs(model, tokenizer, row) for model in (final, initial))
        entropies += (-(p.exp() * p).sum(-1)).tolist()
        distances += (p.exp() * (p - p0)).sum(-1).tolist()
    assert held_out[2]["held_out/entropy"] == pytest.approx(np.mean(entropies), rel=1e-3)
    assert held_out[2]["held_out/kl"] == pytest.approx(np.mean(distances), rel=1e-2)


def test_reference_texts_are_no_longer_than_the_policy_reads(tiny_model: str, conversations: str) -> None:
    template = ConversationTemplate(AutoTokenizer.from_pretrained(tiny_model))
    flags = ["--perplexity_dataset_path", conversations, "--prompt_max_length", "90", "--output_max_length", "90"]
    config = parse(AlignConfig, flags, prog="raft align")
    short, whole = (
        max(len(row.tokens) for row in load_reference_texts(config, template, context)) for context in (40, 500)
    )
    assert short <= 40 < whole <= 180


def test_perplexity_of_reference_texts(align: Any, talkative_model: str, tmp_path: Path) -> None:
    words = ("time", "water")
    pairs = [{"prompt": f"Bread needs {word}", "chosen": f"{word} and salt", "rejected": "no"} for word in words]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    _, held_out = log_of(align("run", num_raft_iteration=1, perplexity_dataset_path=path))
    tokenizer = AutoTokenizer.from_pretrained(talkative_model)
    model = AutoModelForCausalLM.from_pretrained(talkative_model, dtype=torch.float32).eval()
    values: list[float] = []
    for pair in pairs:
        response = tokenizer(pair["chosen"] + tokenizer.eos_token, add_special_tokens=False).input_ids
        row = {"prompt": [{"role": "user", "content": pair["prompt"]}], "response_tokens": response}
        values += all_logprobs(model, tokenizer, row).gather(1, torch.tensor(response)[:, None]).flatten().tolist()
    assert held_out[0]["held_out/perplexity"] == pytest.approx(math.exp(-np.mean(values)), rel=1e-3)
    assert held_out[1]["held_out/perplexity"] != held_out[0]["held_out/perplexity"]


def test_held_out_rows_bring_their_own_reference_texts(align: Any, conversations: str) -> None:
    settings: dict[str, object] = {"num_raft_iteration": 1, "dataset_path": conversations, "perplexity_num_texts": 4}
    _, held_out = log_of(align("with", **settings))
    assert held_out[0]["held_out/perplexity"] > 1
    _, held_out = log_of(align("without", **settings | {"perplexity_num_texts": 0}))
    assert "held_out/perplexity" not in held_out[0]


def test_measuring_can_be_switched_off(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("no copy of the initial policy is needed")

    monkeypatch.setattr("raft.stages.align_parts.load_causal_lm", refuse)
    iterations, held_out = log_of(align(kl_num_responses=0))
    groups = {key.partition("/")[0] for key in iterations[2]}
    assert not groups & {"kl", "entropy"}
    assert not {"held_out/kl", "held_out/entropy", "held_out/perplexity"} & set(held_out[2])


def test_reference_texts_without_a_response_in_reach(
    align: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 900, "response": "yes"}) + "\n")
    align(code=2, perplexity_dataset_path=path)
    assert f"--perplexity_dataset_path {path}: none of the first 1 rows" in capsys.readouterr().err


def test_measured_samples_are_spread_over_the_prompts() -> None:
    samples: Any = list(range(10))
    assert spread_evenly(samples, 4) == [0, 2, 5, 7]
    assert spread_evenly(samples, 20) == samples
    assert spread_evenly([], 4) == []


def test_tensorboard_has_every_number_of_the_log(align: Any) -> None:
    run = align(eval_every_n_iterations=1)
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    found = {(tag, event.step): event.value for tag in board.Tags()["scalars"] for event in board.Scalars(tag)}
    expected: dict[tuple[str, int], float] = {}
    for record in read_jsonl(run / "metrics.jsonl"):
        place = record.get("step", record.get("iteration"))
        for key, value in record.items():
            if "step" not in record and key == "train/loss":
                continue  # the chart of the steps has it
            if "/" in key and isinstance(value, int | float):
                expected[key, place] = value
    assert len(expected) > 100
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert {tag for tag, _ in set(found) - set(expected)} == {"held_out/reward_ci95_low", "held_out/reward_ci95_high"}
