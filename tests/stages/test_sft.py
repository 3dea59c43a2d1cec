"""``raft sft`` from the command line to the files that it leaves behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, SENTENCES, run_raft
from tests.processes import run_torchrun
from tests.stages.runs import files, read_metrics, run_and_kill, run_many

TRAINED = {"step", "train/loss", "train/learning_rate", "train/grad_norm", "train/weight"}
EVALUATED = {"step", "eval/loss", "eval/perplexity"}
OF_A_RUN = {
    "config.yaml", "environment.json", "metrics.jsonl", "summary.json", "report.html", "plots/loss.png",
    "tensorboard/events",
}  # fmt: skip
TOKENIZER = {"final/tokenizer.json", "final/tokenizer_config.json", "final/chat_template.jinja"}
WHOLE_MODEL = {"final/README.md", "final/config.json", "final/generation_config.json", "final/model.safetensors"}
ADAPTER = {
    "final/README.md",
    "final/adapter_config.json",
    "final/adapter_model.safetensors",
    "final/raft_adapter.json",
}
NUM_STEPS = 30  # six epochs over 18 rows in steps of 4, the last one of 2
LORA = ("--use_lora", "--lora_r", 4, "--save_steps", 0)


@pytest.fixture(scope="module")
def flags(tiny_model: str, conversations: str) -> list[object]:
    """What the runs on conversations have in common; 6 of the 24 rows are held out."""
    return [
        *("sft", "--model_name_or_path", tiny_model, "--dataset_path", conversations, "--dtype", "fp32"),
        *("--validation_split_percentage", 25, "--per_device_train_batch_size", 4, "--num_train_epochs", 6),
        *("--learning_rate", 3e-3, "--eval_steps", 10, "--save_steps", 10),
    ]


@pytest.fixture(scope="module")
def full(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    run = tmp_path_factory.mktemp("sft") / "full"
    run_raft(*flags, "--output_dir", run)
    return run


@pytest.fixture(scope="module")
def lora_on_two(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA under ZeRO-3 with two processes, at the same global batch."""
    run = tmp_path_factory.mktemp("sft") / "lora-on-two"
    zero = ROOT / "scripts/deepspeed/zero3.json"
    sharing = ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--deepspeed", zero)
    done = run_torchrun(*flags, *LORA, *sharing, "--output_dir", run, num_processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return run


@pytest.fixture(scope="module")
def others(flags: list[object], full: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of further runs, which one process makes one after the other."""
    root = tmp_path_factory.mktemp("sft-others")
    run_and_kill([*flags, "--output_dir", root / "killed"], after_step=17)
    assert not (root / "killed/final").exists()
    assert [row["step"] for row in read_metrics(root / "killed", "train")] == list(range(1, 18))
    # As if killed between the last step and the export.
    shutil.copytree(full, root / "finished")
    shutil.rmtree(root / "finished/final")
    (root / "finished/summary.json").unlink()

    words = " ".join(SENTENCES).split()
    texts = root / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": " ".join(words[i : 4 + 4 * i])}) + "\n" for i in range(8)))
    plain = ["sft", "--model_name_or_path", tiny_model, "--dataset_path", texts, "--dtype", "fp32"]
    plain += ["--learning_rate", 2e-3, "--num_train_epochs", 3, "--max_length", 200]
    run_many(
        root,
        [
            [*flags, "--output_dir", root / "killed", "--resume"],
            [*flags, "--output_dir", root / "finished", "--resume"],
            [*flags, "--output_dir", root / "short", "--max_steps", 7],
            [*flags, "--output_dir", root / "bf16", "--dtype", "bf16", "--save_steps", 0],
            [*flags, *LORA, "--output_dir", root / "lora"],
            [*plain, "--output_dir", root / "packed"],
            [*plain, "--output_dir", root / "unpacked", "--no_packing"],
        ],
    )
    return root


def held_out_loss(model: Any, tokenizer: Any, conversations: str) -> float:
    """Mean loss of the response tokens of the last six rows, EOS included; by transformers alone."""
    total, num_targets = 0.0, 0
    for line in Path(conversations).read_text().splitlines()[-6:]:
        user, assistant = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt).input_ids
        response_ids = tokenizer(assistant["content"] + tokenizer.eos_token).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt_ids + response_ids])).logits[0].float()
        logprobs = logits[len(prompt_ids) - 1 : -1].log_softmax(-1)
        total -= logprobs[range(len(response_ids)), response_ids].sum().item()
        num_targets += len(response_ids)
    return total / num_targets


def losses(run: Path) -> list[float]:
    """Training loss of every step."""
    return [row["train/loss"] for row in read_metrics(run, "train")]


def test_a_full_run_leaves_exactly_these_files(full: Path) -> None:
    checkpoint = {name for name in files(full) if name.startswith("checkpoints/")}
    assert files(full) - checkpoint == OF_A_RUN | TOKENIZER | WHOLE_MODEL
    assert {name.split("/")[1] for name in checkpoint} == {f"{NUM_STEPS:06d}"}


def test_metrics_are_written_for_every_step_and_evaluation(full: Path) -> None:
    trained, evaluated = read_metrics(full, "train"), read_metrics(full, "eval")
    assert [row["step"] for row in trained] == list(range(1, NUM_STEPS + 1))
    assert [row["step"] for row in evaluated] == [0, 10, 20, 30]
    assert all(row.keys() == TRAINED for row in trained)
    assert all(row.keys() == EVALUATED for row in evaluated)
    assert all(row["eval/perplexity"] == pytest.approx(math.exp(row["eval/loss"])) for row in evaluated)
    expected = [3e-3 * (1 - step / NUM_STEPS) for step in range(NUM_STEPS)]
    assert [row["train/learning_rate"] for row in trained] == pytest.approx(expected)


def test_the_summary_says_how_it_ended(full: Path) -> None:
    last = read_metrics(full, "eval")[-1]
    assert json.loads((full / "summary.json").read_text()) == {
        "num_steps": NUM_STEPS,
        "loss": last["eval/loss"],
        "perplexity": last["eval/perplexity"],
        "num_train_rows": 18,
        "num_held_out_rows": 6,
    }


@pytest.mark.parametrize("name", ["full", "bf16", "lora"])
def test_training_learns(full: Path, others: Path, name: str) -> None:
    run = full if name == "full" else others / name
    found = losses(run)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    evaluated = [row["eval/loss"] for row in read_metrics(run, "eval")]
    assert evaluated[-1] < 0.97 * evaluated[0]


def test_the_held_out_loss_is_that_of_the_saved_model(full: Path, conversations: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(full / "final")
    expected = held_out_loss(model, AutoTokenizer.from_pretrained(full / "final"), conversations)
    assert read_metrics(full, "eval")[-1]["eval/loss"] == pytest.approx(expected, rel=1e-5)


def test_an_adapter_run_leaves_exactly_these_files(others: Path, lora_on_two: Path) -> None:
    assert files(others / "lora") == OF_A_RUN | TOKENIZER | ADAPTER
    assert files(lora_on_two) == OF_A_RUN | TOKENIZER | ADAPTER


def test_adapters_trained_under_zero_3_on_two_ranks_are_those_of_one(others: Path, lora_on_two: Path) -> None:
    assert losses(lora_on_two) == pytest.approx(losses(others / "lora"), rel=1e-4)
    one = load_file(others / "lora/final/adapter_model.safetensors")
    two = load_file(lora_on_two / "final/adapter_model.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)  # 30 steps of up to 3e-3


def test_the_held_out_loss_is_that_of_the_saved_adapter(lora_on_two: Path, tiny_model: str, conversations: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), lora_on_two / "final")
    expected = held_out_loss(model, AutoTokenizer.from_pretrained(lora_on_two / "final"), conversations)
    assert read_metrics(lora_on_two, "eval")[-1]["eval/loss"] == pytest.approx(expected, rel=1e-5)


def test_max_steps_ends_early_and_the_schedule_with_it(others: Path) -> None:
    run = others / "short"
    assert [row["step"] for row in read_metrics(run, "train")] == list(range(1, 8))
    assert [row["step"] for row in read_metrics(run, "eval")] == [0, 7]
    rates = [row["train/learning_rate"] for row in read_metrics(run, "train")]
    assert rates == pytest.approx([3e-3 * (1 - step / 7) for step in range(7)])
    assert json.loads((run / "summary.json").read_text())["num_steps"] == 7
    assert files(run) == OF_A_RUN | TOKENIZER | WHOLE_MODEL  # 7 steps, so no checkpoint yet


@pytest.mark.parametrize("name", ["killed", "finished"])
def test_resuming_equals_no_interruption(full: Path, others: Path, name: str) -> None:
    run = others / name
    assert files(run) == files(full)
    for prefix in ("train", "eval"):
        assert read_metrics(run, prefix) == read_metrics(full, prefix)  # every digit, and no step twice
    assert json.loads((run / "summary.json").read_text()) == json.loads((full / "summary.json").read_text())
    mine, expected = (load_file(path / "final/model.safetensors") for path in (run, full))
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[weight], value) for weight, value in expected.items())


def test_packing_changes_nothing_but_the_number_of_rows(others: Path) -> None:
    packed, unpacked = (read_metrics(others / name, "train") for name in ("packed", "unpacked"))
    assert [row["train/weight"] for row in packed] == [row["train/weight"] for row in unpacked]
    for name in ("train/loss", "train/grad_norm"):
        assert [row[name] for row in packed] == pytest.approx([row[name] for row in unpacked], rel=1e-5)
    rows = {name: json.loads((others / name / "summary.json").read_text()) for name in ("packed", "unpacked")}
    assert rows["packed"]["num_train_rows"] < rows["unpacked"]["num_train_rows"] == 8
    assert losses(others / "packed")[-1] < losses(others / "packed")[0]
