"""``raft reward`` from the command line to a reward model that others can load."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raft import cli
from raft.config import TrainingConfig
from raft.data.batching import Batching, PairBatch, collate_pairs, paired_length
from raft.data.encoding import PairRow
from raft.errors import UserError
from raft.functional.losses import bradley_terry_loss
from raft.rewards.reward_model import load_reward_model
from raft.stages.reward_modeling import PreferenceConfig, padding_share, preference_loss
from tests.conftest import CHAT_TEMPLATE, run_raft
from tests.stages.runs import files, read_metrics, run_and_kill, run_many

REPORTED = {"loss", "accuracy", "margin", "score", "score_squared"}
OF_A_RUN = {
    "config.yaml", "environment.json", "metrics.jsonl", "summary.json", "report.html", "plots/loss.png",
    "tensorboard/events",
}  # fmt: skip
OF_A_REWARD_MODEL = {
    "final/README.md",
    "final/reward_model.json",
    "final/tokenizer.json",
    "final/tokenizer_config.json",
    "final/chat_template.jinja",
}
ADAPTER = {"final/adapter_config.json", "final/adapter_model.safetensors", "final/raft_adapter.json"}
WHOLE_MODEL = {"final/config.json", "final/model.safetensors"}
HEAD = "base_model.model.score.weight"
NUM_STEPS = 20  # four epochs over 18 pairs in steps of 4, the last one of 2
NUM_HELD_OUT = 6
# Llama, 32 wide, 2 layers, 64 in between, 4 heads on 2: embeddings, attention (q k v o), MLP, norms; and the head.
PARTS = {"embeddings": 384 * 32, "attention": 2 * (2 * 32 * 32 + 2 * 32 * 16), "mlp": 2 * 3 * 32 * 64, "norms": 5 * 32}
RANKS = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # inputs and outputs of every linear layer
NUM_TRAINED = {"full": sum(PARTS.values()) + 32, "adapter": 4 * RANKS + 32}


def from_the_full_one(root: Path) -> list[object]:
    """Flags that go on from a reward model, whose head has to be kept whatever is said about new ones."""
    return ["--model_name_or_path", root / "full/final", "--score_head_init", "zero"]


@pytest.fixture(scope="module")
def flags(tiny_model: str, preferences: str) -> list[object]:
    """What the runs have in common; 6 of the 24 pairs are held out."""
    return [
        *("reward", "--model_name_or_path", tiny_model, "--dataset_path", preferences, "--dtype", "fp32"),
        *("--validation_split_percentage", 25, "--per_device_train_batch_size", 4, "--num_train_epochs", 4),
        *("--learning_rate", 2e-3, "--lora_r", 4, "--eval_steps", 10, "--save_steps", 5),
    ]


@pytest.fixture(scope="module")
def adapter(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default kind, LoRA, without interruption."""
    run = tmp_path_factory.mktemp("reward") / "adapter"
    run_raft(*flags, "--output_dir", run)
    return run


@pytest.fixture(scope="module")
def on_two(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under ZeRO-3 with two processes, at the same global batch."""
    run = tmp_path_factory.mktemp("reward") / "on-two"
    zero = run.with_name("zero3.json")
    zero_3 = {"stage": 3, "stage3_param_persistence_threshold": 0}  # else DeepSpeed keeps small weights whole
    zero.write_text(json.dumps({"zero_optimization": zero_3}))
    sharing = ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--deepspeed", zero)
    run_raft(*flags, *sharing, "--save_steps", 0, "--output_dir", run, num_processes=2)
    return run


@pytest.fixture(scope="module")
def others(flags: list[object], adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of further runs, which one process makes one after the other."""
    root = tmp_path_factory.mktemp("reward-others")
    run_and_kill([*flags, "--output_dir", root / "killed"], after_step=8)
    assert not (root / "killed/final").exists()
    # As if killed between the last step and the export.
    shutil.copytree(adapter, root / "finished")
    shutil.rmtree(root / "finished/final")
    (root / "finished/summary.json").unlink()
    run_many(
        root,
        [
            [*flags, "--output_dir", root / "killed", "--resume"],
            [*flags, "--output_dir", root / "finished", "--resume"],
            [*flags, "--output_dir", root / "full", "--no_use_lora", "--save_steps", 0],
            [*flags, "--output_dir", root / "short", "--max_steps", 3],
            [*flags, "--output_dir", root / "alone", "--max_steps", 1, "--validation_split_percentage", 0],
            [*flags, "--output_dir", root / "unshared", "--no_share_prompts", "--save_steps", 0],
            [*flags, "--output_dir", root / "zero", "--score_head_init", "zero", "--max_steps", 3],
            [*flags, "--output_dir", root / "small", "--score_head_init", "small", "--max_steps", 1],
            [*flags, "--output_dir", root / "again", *from_the_full_one(root), "--max_steps", 1],
        ],
    )
    return root


def load_plain(final: Path, tiny_model: str) -> Any:
    """A saved reward model by transformers and peft alone; refuses one whose head would be new."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if not (final / "adapter_config.json").exists():
        model, report = AutoModelForSequenceClassification.from_pretrained(final, output_loading_info=True)
        assert not report["missing_keys"]
        return model.eval()
    torch.manual_seed(12345)  # another initial head than the run's
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    return PeftModel.from_pretrained(base, final).eval()


def held_out_scores(final: Path, tiny_model: str, preferences: str) -> torch.Tensor:
    """(pairs, 2): scores of the chosen and the rejected response of the held-out pairs, one text at a time."""
    from transformers import AutoTokenizer

    model, tokenizer = load_plain(final, tiny_model), AutoTokenizer.from_pretrained(final)
    scores = []
    for line in Path(preferences).read_text().splitlines()[-NUM_HELD_OUT:]:
        pair = json.loads(line)
        user = [{"role": "user", "content": pair["prompt"]}]
        prompt = tokenizer(tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)).input_ids
        for side in ("chosen", "rejected"):
            response = tokenizer(pair[side] + tokenizer.eos_token).input_ids
            with torch.no_grad():
                # transformers reads the score at the last token: the EOS that closes the response.
                scores.append(model(input_ids=torch.tensor([prompt + response])).logits[0, 0])
    return torch.stack(scores).view(-1, 2)


def test_a_run_leaves_exactly_these_files(adapter: Path, on_two: Path, others: Path) -> None:
    checkpoint = {name for name in files(adapter) if name.startswith("checkpoints/")}
    assert {name.split("/")[1] for name in checkpoint} == {f"{NUM_STEPS:06d}"}
    assert files(adapter) - checkpoint == OF_A_RUN | OF_A_REWARD_MODEL | ADAPTER
    assert files(on_two) == OF_A_RUN | OF_A_REWARD_MODEL | ADAPTER
    assert files(others / "full") == OF_A_RUN | OF_A_REWARD_MODEL | WHOLE_MODEL


def test_metrics_are_written_for_every_step_and_evaluation(adapter: Path) -> None:
    trained, evaluated = read_metrics(adapter, "train"), read_metrics(adapter, "eval")
    assert [row["step"] for row in trained] == list(range(1, NUM_STEPS + 1))
    assert [row["step"] for row in evaluated] == [0, 10, 20]
    others = {"learning_rate", "grad_norm", "weight"}
    assert all(row.keys() == {"step"} | {f"train/{name}" for name in REPORTED | others} for row in trained)
    assert all(row.keys() == {"step"} | {f"eval/{name}" for name in REPORTED} for row in evaluated)
    assert [row["train/weight"] for row in trained] == 4 * [4, 4, 4, 4, 2]
    # Cosine with 3 % warm-up, which is one step here: 0 first, then from the peak down to nearly nothing.
    rates = [row["train/learning_rate"] for row in trained]
    expected = [0.0] + [1e-3 * (1 + math.cos(math.pi * step / 19)) for step in range(19)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adapter", "on_two", "full"])
def test_training_learns_to_tell_polite_from_impolite(adapter: Path, on_two: Path, others: Path, name: str) -> None:
    run = {"adapter": adapter, "on_two": on_two, "full": others / "full"}[name]
    trained, evaluated = read_metrics(run, "train"), read_metrics(run, "eval")
    assert sum(row["train/loss"] for row in trained[-5:]) < 0.5 * sum(row["train/loss"] for row in trained[:5])
    assert evaluated[-1]["eval/accuracy"] >= 5 / 6
    assert evaluated[-1]["eval/loss"] < 0.5 * evaluated[0]["eval/loss"]


@pytest.mark.parametrize("name", ["adapter", "on_two", "full"])
def test_the_evaluation_is_that_of_the_saved_model(
    adapter: Path, on_two: Path, others: Path, tiny_model: str, preferences: str, name: str
) -> None:
    run = {"adapter": adapter, "on_two": on_two, "full": others / "full"}[name]
    scores = held_out_scores(run / "final", tiny_model, preferences)
    margins = scores[:, 0] - scores[:, 1]
    expected = {
        "step": NUM_STEPS,
        "eval/accuracy": (margins > 0).float().mean().item(),
        "eval/loss": torch.log1p(torch.exp(-margins)).mean().item(),
        "eval/margin": margins.mean().item(),
        "eval/score": scores.mean().item(),
        "eval/score_squared": scores.square().mean().item(),
    }
    found = read_metrics(run, "eval")[-1]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    contract = json.loads((run / "final/reward_model.json").read_text())
    assert contract["accuracy"] == found["eval/accuracy"]
    assert contract["num_pairs"] == NUM_HELD_OUT
    assert contract["score_mean"] == pytest.approx(scores.mean().item(), rel=1e-4, abs=1e-5)
    assert contract["score_std"] == pytest.approx(scores.std(correction=0).item(), rel=1e-4)
    assert json.loads((run / "summary.json").read_text()) == {
        "num_steps": NUM_STEPS,
        "accuracy": found["eval/accuracy"],
        "loss": found["eval/loss"],
        "num_train_pairs": 18,
        "num_held_out_pairs": NUM_HELD_OUT,
        "num_trained_parameters": NUM_TRAINED["full" if name == "full" else "adapter"],
    }


def test_the_model_says_what_it_was_trained_on(adapter: Path, others: Path, tiny_model: str) -> None:
    from transformers import AutoModelForCausalLM

    from raft.models.loading import fingerprint

    contract = json.loads((adapter / "final/reward_model.json").read_text())
    assert contract["template"] == "chat"
    assert contract["max_length"] == 512
    assert contract["score_token"] == "eos"
    assert contract["base_model"] == tiny_model
    assert contract["base_model_fingerprint"] == fingerprint(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert json.loads((adapter / "final/adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model
    assert (contract["truncation_side"], contract["padding_side"]) == ("left", "right")
    assert (contract["label"], contract["sign"]) == (0, 1)
    assert (contract["body_dtype"], contract["score_dtype"]) == ("fp32", "fp32")
    assert contract["chat_template"] == CHAT_TEMPLATE
    assert (contract["system_message"], contract["default_system_prompt"]) == ("rendered", "")
    assert contract["rendered_example"] == ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>")
    whole = json.loads((others / "full/final/reward_model.json").read_text())
    assert whole["base_model"] is None
    card = (adapter / "final/README.md").read_text()
    assert f"Held-out accuracy: {contract['accuracy']:.1%} of 6 pairs" in card


@pytest.mark.parametrize("name", ["adapter", "on_two", "full"])
def test_examples_are_held_out_pairs_with_the_scores_of_the_saved_model(
    adapter: Path, on_two: Path, others: Path, tiny_model: str, preferences: str, name: str
) -> None:
    """And whoever loads the model scores them so, else its self-test refuses it."""
    final = {"adapter": adapter, "on_two": on_two, "full": others / "full"}[name] / "final"
    contract = json.loads((final / "reward_model.json").read_text())
    pairs = [json.loads(line) for line in Path(preferences).read_text().splitlines()[-NUM_HELD_OUT:]]
    scores = held_out_scores(final, tiny_model, preferences)
    found = {example["chosen"]: example for example in contract["examples"]}
    assert 1 <= len(found) <= 4
    for pair, (chosen, rejected) in zip(pairs, scores.tolist(), strict=True):
        if pair["chosen"] in found:
            example = found.pop(pair["chosen"])
            assert example["messages"] == [{"role": "user", "content": pair["prompt"]}]
            assert example["rejected"] == pair["rejected"]
            assert example["chosen_score"] == pytest.approx(chosen, abs=1e-4)
            assert example["rejected_score"] == pytest.approx(rejected, abs=1e-4)
            assert chosen - rejected >= contract["score_std"] / 2
    assert not found
    model = load_reward_model(str(final), base=None, dtype="fp32", batch_size=4)
    assert len(model.contract.examples) == len(contract["examples"])


def test_an_adapter_saved_under_zero_3_holds_its_head(adapter: Path, on_two: Path) -> None:
    one = load_file(adapter / "final/adapter_model.safetensors")
    two = load_file(on_two / "final/adapter_model.safetensors")
    assert two[HEAD].shape == (1, 32)
    assert two[HEAD].abs().sum() > 0
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)


def test_ranks_and_stages_do_not_change_the_trajectory(adapter: Path, on_two: Path) -> None:
    for prefix in ("train", "eval"):
        for mine, expected in zip(read_metrics(on_two, prefix), read_metrics(adapter, prefix), strict=True):
            assert mine == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_max_steps_ends_early(others: Path) -> None:
    assert [row["step"] for row in read_metrics(others / "short", "train")] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(others / "short", "eval")] == [0, 3]
    assert json.loads((others / "short/summary.json").read_text())["num_steps"] == 3


def test_without_held_out_pairs_nothing_is_claimed(others: Path) -> None:
    assert read_metrics(others / "alone", "eval") == []
    contract = json.loads((others / "alone/final/reward_model.json").read_text())
    assert [contract[name] for name in ("accuracy", "num_pairs", "score_mean", "score_std")] == 4 * [None]
    assert contract["examples"] == []
    assert "Held-out accuracy: not measured" in (others / "alone/final/README.md").read_text()


@pytest.mark.parametrize("name", ["killed", "finished"])
def test_resuming_equals_no_interruption(adapter: Path, others: Path, name: str) -> None:
    run = others / name
    assert files(run) == files(adapter)
    for prefix in ("train", "eval"):
        assert read_metrics(run, prefix) == read_metrics(adapter, prefix)
    for file in ("summary.json", "final/reward_model.json"):
        assert json.loads((run / file).read_text()) == json.loads((adapter / file).read_text())
    mine, expected = (load_file(path / "final/adapter_model.safetensors") for path in (run, adapter))
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[weight], value) for weight, value in expected.items())


def test_sharing_prompts_does_not_change_the_trajectory(adapter: Path, others: Path) -> None:
    for prefix in ("train", "eval"):
        for mine, expected in zip(
            read_metrics(others / "unshared", prefix), read_metrics(adapter, prefix), strict=True
        ):
            assert mine == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert "share_prompts: true" in (adapter / "config.yaml").read_text()


def test_a_head_of_zeros_ties_all_pairs_and_ties_are_wrong(others: Path) -> None:
    first, *_, last = read_metrics(others / "zero", "eval")
    assert (first["eval/accuracy"], first["eval/margin"], first["eval/score_squared"]) == (0, 0, 0)
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["eval/score_squared"] > 0  # it learns from there


def test_a_small_head_starts_near_zero(adapter: Path, others: Path) -> None:
    default, small = (read_metrics(run, "eval")[0]["eval/score_squared"] for run in (adapter, others / "small"))
    # Deviation 0.2 (initializer_range) against 1/33: 6.6 times as large, 44 times when squared, give or take chance.
    assert 0 < small < default / 5


def test_a_head_that_is_there_is_kept(others: Path) -> None:
    begins, ended = read_metrics(others / "again", "eval")[0], read_metrics(others / "full", "eval")[-1]
    assert begins["eval/loss"] == pytest.approx(ended["eval/loss"], rel=1e-4)
    assert begins["eval/accuracy"] == ended["eval/accuracy"]


def test_options_reach_the_loss() -> None:
    """Two pairs by hand: differences 1 less a margin of 2 * 0.5, and 2 less nothing; a third one ties."""
    options = PreferenceConfig("pairs.jsonl", margin_weight=2.0, label_smoothing=0.2, centering=0.1)
    scores = torch.tensor([2.0, 1.0, 0.5, 1.0, -1.0, 0.5])
    batch = PairBatch(torch.zeros(6, 1), torch.ones(6, 1), torch.tensor([0.5, 0.0, 0.0]), weight=3)
    loss, sums = preference_loss(options)(lambda *inputs: scores, batch)
    of_two = 0.8 * math.log(1 + math.exp(-2)) + 0.2 * math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx(2 * math.log(2) + of_two + 0.1 * (9 + 0 + 1), abs=1e-6)
    assert sums == pytest.approx({"accuracy": 2, "margin": 3, "score": 2.0, "score_squared": 3.75})


@pytest.mark.parametrize(
    "wrong", [{"margin_weight": -1.0}, {"centering": -0.1}, {"label_smoothing": 0.5}, {"max_length": 7}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"--{name}: found {value}, allowed"):
        PreferenceConfig("pairs.jsonl", **wrong)  # type: ignore[arg-type]


def test_padding_of_the_batches_by_hand() -> None:
    """Steps of two pairs; lengths 4 + 4 and 2 + 2, nothing shared: 16 positions for 12 tokens, whatever the order."""
    pairs = [PairRow([1, 2, 3, 4], [5, 6, 7, 8]), PairRow([1, 2], [3, 4])]
    training = TrainingConfig(per_device_train_batch_size=2)
    assert padding_share(pairs, training, 0, Batching(paired_length, lambda some: collate_pairs(some, 0))) == 4 / 16
    apart = TrainingConfig(per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert padding_share(pairs, apart, 0, Batching(paired_length, lambda some: collate_pairs(some, 0))) == 0


def test_a_loss_that_is_not_finite_stops_the_run(
    flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both texts of each pair of the step are written down."""
    calls = iter(range(100))

    def loss(*scores: torch.Tensor, **options: Any) -> torch.Tensor:
        return bradley_terry_loss(*scores, **options) * (float("inf") if next(calls) == 2 else 1.0)  # 1: held-out

    monkeypatch.setattr("raft.stages.reward_modeling.bradley_terry_loss", loss)
    run = tmp_path / "run"
    assert cli.main([*map(str, flags), "--per_device_train_batch_size", "6", "--output_dir", str(run)]) == 2
    file = run / "nonfinite/step-000002.json"
    told = "raft reward: error: step 2: the loss is not finite (loss inf), so the step was not taken; its rows are in "
    assert f"{told}{file}." in capsys.readouterr().err
    written = json.loads(file.read_text())
    assert (written["loss"], len(written["rows"])) == ("inf", 6)
    for row in written["rows"]:
        assert "thank you very much" in row["chosen_text"]
        assert "runs away from it" in row["rejected_text"]
        assert len(row["chosen"]) > 4
    assert sum(row["loss"] for row in written["rows"]) / 6 < 10
