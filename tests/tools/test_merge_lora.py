"""`raft merge`: what is written says what base and adapter say, and what must not be merged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raft import distributed
from raft.arguments import parse
from raft.cli import main as raft_main
from raft.errors import UserError
from raft.rewards.contract import RewardContract
from raft.rewards.reward_model import load_reward_model
from raft.rewards.source import Candidate
from raft.tools import merge_lora
from raft.tools.merge_lora import main
from raft.tools.merge_lora_config import MergeConfig
from tests.adapters import build_adapter
from tests.conftest import SENTENCES, build_model

FILES = {"README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"}
FILES |= {"tokenizer_config.json"}


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "policy")


@pytest.fixture(scope="module")
def reward_adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "reward", reward=True)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same architecture with other weights."""
    directory = tmp_path_factory.mktemp("models") / "other"
    build_model(directory, seed=7)
    return str(directory)


def run(*arguments: object) -> None:
    main(parse(MergeConfig, [str(argument) for argument in arguments], prog="raft merge"))


def copy_of(adapter: str, directory: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of an adapter with another configuration."""
    directory.mkdir()
    for path in Path(adapter).iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    settings = json.loads((directory / "adapter_config.json").read_text())
    change(settings)
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return str(directory)


def rows(model: str) -> list[torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(sentence, return_tensors="pt").input_ids for sentence in SENTENCES]


def candidates() -> list[Candidate]:
    return [Candidate([{"role": "user", "content": SENTENCES[i - 1]}], SENTENCES[i]) for i in range(4)]


def scores(path: str, **options: Any) -> torch.Tensor:
    model = load_reward_model(path, base=None, dtype="fp32", batch_size=2, **options)
    return torch.tensor(model.score(candidates(), name="scores", progress=None))


# ---------------------------------------------------------------- what is written


@torch.no_grad()
def test_language_model(tiny_model: str, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--lora_model_path", adapter, "--output_dir", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plain = [base(input_ids=row).logits for row in rows(tiny_model)]
    adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    for row, before in zip(rows(tiny_model), plain, strict=True):
        expected = adapted(input_ids=row).logits
        torch.testing.assert_close(merged(input_ids=row).logits, expected, rtol=0, atol=5e-5)
        assert (expected - before).abs().max() > 0.1  # the adapter does something
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert written == FILES | {"generation_config.json"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(adapter).chat_template
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'merged'}"


@torch.no_grad()
def test_reward_model(reward_adapter: str, tmp_path: Path) -> None:
    run("--adapter", reward_adapter, "--output_dir", tmp_path / "merged")
    merged = str(tmp_path / "merged")
    torch.testing.assert_close(scores(merged), scores(reward_adapter), rtol=0, atol=1e-5)
    assert {path.name for path in (tmp_path / "merged").iterdir()} == FILES | {"reward_model.json"}
    before, after = RewardContract.load(reward_adapter), RewardContract.load(merged)
    assert before is not None
    assert before.base_model_fingerprint
    expected = {**vars(before), "base_model": None, "base_model_fingerprint": None}
    assert vars(after) == expected  # type: ignore[arg-type]
    # Plain transformers reads the same scores: it finds the last token by the pad id, which must be in the config.
    classifier = AutoModelForSequenceClassification.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged, padding_side="right")
    texts = [
        f"<|im_start|>user\n{one.messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n{one.response}<|im_end|>"
        for one in candidates()
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    torch.testing.assert_close(classifier(**batch).logits[:, 0], scores(reward_adapter), rtol=0, atol=1e-5)


def test_bf16_is_stored_and_its_rounding_is_told(
    reward_adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--adapter", reward_adapter, "--output_dir", tmp_path / "merged", "--dtype", "bf16")
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    difference = (scores(str(tmp_path / "merged")) - scores(reward_adapter)).abs().max()
    assert 1e-4 < difference < 0.05
    told = "rounding the weights to bf16 moves scores by up to"
    assert told in capsys.readouterr().out
    assert told.capitalize() in (tmp_path / "merged" / "README.md").read_text()


def test_generate_stops_at_the_end_that_the_template_writes(adapter: str, tmp_path: Path) -> None:
    """The template closes with <|im_end|> (2); the adapter's tokenizer calls <|endoftext|> (0) EOS."""
    copied = copy_of(adapter, tmp_path / "copied", lambda config: None)
    AutoTokenizer.from_pretrained(copied, eos_token="<|endoftext|>").save_pretrained(copied)
    run("--adapter", copied, "--output_dir", tmp_path / "merged")
    assert json.loads((tmp_path / "merged/generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_card(reward_adapter: str, tiny_model: str, tmp_path: Path) -> None:
    run("--adapter", reward_adapter, "--output_dir", tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.startswith(
        f"---\nlibrary_name: transformers\nbase_model: {tiny_model}\ntags: [reward-model, raft]\n---\n"
    )
    assert "75.0% of 24 pairs" in card
    assert f"`{reward_adapter}` merged into `{tiny_model}` in fp32" in card


def test_adapter_on_top_of_an_adapter(adapter: str, tmp_path: Path) -> None:
    """LoRA upon LoRA: the base of the second is the first one, merged."""
    second = build_adapter(adapter, tmp_path / "second", seed=3)
    run("--adapter", adapter, "--output_dir", tmp_path / "first_merged")
    run("--adapter", second, "--output_dir", tmp_path / "second_merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "first_merged")
    adapted = peft.PeftModel.from_pretrained(base, second).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "second_merged")
    with torch.no_grad():
        for row in rows(adapter):
            expected = adapted(input_ids=row).logits
            torch.testing.assert_close(merged(input_ids=row).logits, expected, rtol=0, atol=1e-4)


def test_tokenizer_of_the_base_where_the_adapter_has_none(adapter: str, tmp_path: Path) -> None:
    bare = copy_of(adapter, tmp_path / "bare", lambda settings: None)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "bare" / name).unlink()
    run("--adapter", bare, "--output_dir", tmp_path / "merged")
    tokenizer, original = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", adapter))
    assert tokenizer(SENTENCES[0]).input_ids == original(SENTENCES[0]).input_ids


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_task_is_told_by_the_head_where_the_adapter_names_none(
    kind: str, adapter: str, reward_adapter: str, tmp_path: Path
) -> None:
    source = adapter if kind == "policy" else reward_adapter
    unnamed = copy_of(source, tmp_path / "unnamed", lambda settings: settings.update(task_type=None))
    run("--adapter", unnamed, "--output_dir", tmp_path / "merged")
    (architecture,) = json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"]
    assert architecture == ("LlamaForCausalLM" if kind == "policy" else "LlamaForSequenceClassification")


# ---------------------------------------------------------------- what is refused


def test_wrong_base(adapter: str, reward_adapter: str, other_model: str, tmp_path: Path) -> None:
    for path in (adapter, reward_adapter):
        with pytest.raises(UserError, match="trained on another base model: its base has fingerprint"):
            run("--adapter", path, "--model_name_or_path", other_model, "--output_dir", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_base_is_missing(adapter: str, tmp_path: Path) -> None:
    def rename(settings: dict[str, Any]) -> None:
        settings["base_model_name_or_path"] = str(tmp_path / "gone")

    moved = copy_of(adapter, tmp_path / "moved", rename)
    with pytest.raises(UserError, match=r"--model_name_or_path: there is no directory .*gone"):
        run("--adapter", moved, "--output_dir", tmp_path / "merged")


def test_base_by_flag_goes_before_the_named_one(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    moved = copy_of(adapter, tmp_path / "moved", lambda settings: settings.update(base_model_name_or_path="gone"))
    run("--adapter", moved, "--model_name_or_path", tiny_model, "--output_dir", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_reward_adapter_without_head(reward_adapter: str, tmp_path: Path) -> None:
    headless = copy_of(reward_adapter, tmp_path / "headless", lambda settings: None)
    weights = load_file(f"{headless}/adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, f"{headless}/adapter_model.safetensors")
    with pytest.raises(UserError, match=r"--adapter: .*headless holds no score head"):
        run("--adapter", headless, "--output_dir", tmp_path / "merged")


def test_no_adapter(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no LoRA adapter") as caught:
        run("--adapter", tiny_model, "--output_dir", tmp_path / "merged")
    assert "Did you mean" not in str(caught.value)
    copy_of(adapter, tmp_path / "final", lambda settings: None)
    with pytest.raises(UserError, match=r"is no LoRA adapter .* Did you mean .*/final\?"):
        run("--adapter", tmp_path, "--output_dir", tmp_path / "merged")


def test_adapter_for_another_task(adapter: str, tmp_path: Path) -> None:
    other = copy_of(adapter, tmp_path / "other", lambda settings: settings.update(task_type="TOKEN_CLS"))
    with pytest.raises(UserError, match="is an adapter for TOKEN_CLS, allowed are CAUSAL_LM and SEQ_CLS"):
        run("--adapter", other, "--output_dir", tmp_path / "merged")


def test_directory_that_is_taken(adapter: str, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "diary.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        run("--adapter", adapter, "--output_dir", merged)
    with pytest.raises(UserError, match="holds no model"):
        run("--adapter", adapter, "--output_dir", merged, "--overwrite_output_dir")
    assert (merged / "diary.txt").read_text() == "precious"
    (merged / "config.json").write_text("{}")
    run("--adapter", adapter, "--output_dir", merged, "--overwrite_output_dir")
    assert {path.name for path in merged.iterdir()} == FILES | {"generation_config.json"}


@pytest.mark.parametrize("which", ["adapter", "base", "parent"])
def test_what_is_merged_is_not_overwritten(which: str, tiny_model: str, adapter: str) -> None:
    directory = {"adapter": adapter, "base": tiny_model, "parent": str(Path(adapter).parent)}[which]
    with pytest.raises(UserError, match="which is to be merged"):
        run("--adapter", adapter, "--output_dir", directory, "--overwrite_output_dir")
    assert (Path(adapter) / "adapter_model.safetensors").is_file()


def test_mistakes_are_one_line_and_exit_code_2(
    adapter: str, other_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["merge", "--adapter", adapter, "--model_name_or_path", other_model, "--output_dir", f"{tmp_path}/merged"]
    assert raft_main(wrong) == 2
    assert raft_main(["merge", "--adapter", adapter]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("raft merge: error: ") for line in lines] == [True, True]
    assert "--output_dir is required" in lines[1]


# ---------------------------------------------------------------- the verification


def test_merging_that_goes_wrong_is_one_sentence_and_leaves_nothing(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peft.PeftModelForCausalLM, "merge_and_unload", lambda self: self.unload(), raising=False)
    assert raft_main(["merge", "--adapter", adapter, "--output_dir", str(tmp_path / "merged")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("raft merge: error: --adapter: the merged model differs from base and adapter: by")
    assert list(tmp_path.iterdir()) == []


def test_files_that_say_something_else_leave_nothing(
    adapter: str, other_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = merge_lora.load_causal_lm, []

    def load(config: Any) -> Any:
        calls.append(config.model_name_or_path)
        if len(calls) == 2:
            config.model_name_or_path = other_model
        return real(config)

    monkeypatch.setattr(merge_lora, "load_causal_lm", load)
    with pytest.raises(UserError, match="the model read back differs"):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert len(calls) == 2
    assert calls[1] == str(tmp_path / "merged.part")  # read back before it is put in place
    assert list(tmp_path.iterdir()) == []


def test_tolerance() -> None:
    largest = torch.tensor([3.0, -50.0])
    assert merge_lora.compare(largest, largest + torch.tensor([0.0, 0.004]), "") == pytest.approx(0.004, rel=1e-3)
    with pytest.raises(UserError, match=r"allowed is a share of 0\.0001"):
        merge_lora.compare(largest, largest + torch.tensor([0.0, 0.006]), "")
    with pytest.raises(UserError, match=r"by 2\.\d+e-04"):  # below 1 the allowance is absolute
        merge_lora.compare(torch.tensor([0.1]), torch.tensor([0.1002]), "")
    with pytest.raises(UserError, match="by nan"):
        merge_lora.compare(torch.tensor([0.1]), torch.tensor([float("nan")]), "")


def test_further_processes_do_nothing(adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
