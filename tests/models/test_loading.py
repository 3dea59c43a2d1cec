"""Models load as they are or say why not; a fingerprint knows weights, whatever they are stored in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.models.loading import (
    cast,
    fingerprint,
    is_adapter,
    load_causal_lm,
    load_classifier,
    load_config,
    load_tokenizer,
)
from raft.models.lora import attach
from tests.adapters import build_adapter
from tests.conftest import build_model


def named(name: str) -> ModelConfig:
    return ModelConfig(model_name_or_path=name)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 60, 61, 62, 200, 7]])).logits[0]


# ---------------------------------------------------------------- tokenizers


def test_tokenizer_without_pad_borrows_eos(tiny_model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(named(str(tmp_path))).pad_token_id == tokenizer.eos_token_id
    assert load_tokenizer(named(tiny_model)).pad_token == "<|endoftext|>"  # its own is kept


def test_tokenizer_without_eos_is_refused(tiny_model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--reward_model_or_path: the tokenizer of .* has no EOS token"):
        load_tokenizer(named(str(tmp_path)), flag="--reward_model_or_path")


# ---------------------------------------------------------------- models


def test_precision_is_the_one_asked_for(tiny_model: str) -> None:
    assert load_causal_lm(named(tiny_model)).dtype == torch.float32
    assert load_causal_lm(named(tiny_model), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_casting_leaves_position_frequencies_alone(tiny_model: str, tmp_path: Path) -> None:
    """0.001 in bfloat16 is 0.00099945: half a radian too little after 1,000 tokens of a base of 10,000."""
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])  # 10,000 ^ (-i / 4): heads of 8
    adapter = build_adapter(tiny_model, tmp_path / "adapter")
    models = [cast(load_causal_lm(named(tiny_model)), torch.bfloat16)]
    models += [load_causal_lm(named(path), dtype=torch.bfloat16) for path in (tiny_model, adapter)]
    for model in models:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies, rtol=1e-6, atol=0)


def test_tied_weights_stay_tied_when_cast(tiny_model: str) -> None:
    model = cast(load_causal_lm(named(tiny_model)), torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_directory_with_an_adapter_gives_the_merged_model(tiny_model: str, tmp_path: Path) -> None:
    import peft

    adapter = build_adapter(tiny_model, tmp_path / "adapter")
    assert is_adapter(adapter)
    assert not is_adapter(tiny_model)
    model = load_causal_lm(named(adapter))
    assert not any("lora" in name for name, _ in model.named_parameters())
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=2e-5)


def test_classifier_on_a_fine_tuned_adapter_has_its_body(tiny_model: str, tmp_path: Path) -> None:
    """A reward model may start from a language model that was fine-tuned by LoRA."""
    adapter = build_adapter(tiny_model, tmp_path / "adapter")
    language_model, classifier = load_causal_lm(named(adapter)), load_classifier(named(adapter), num_labels=1)
    assert fingerprint(classifier) == fingerprint(language_model) != fingerprint(load_causal_lm(named(tiny_model)))
    assert classifier.score.weight.shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", r"--model_name_or_path: there is no directory \./nothing\.$"),
        ("nothing", "--model_name_or_path: there is no directory nothing"),
        ("output_models/absent", "there is no directory output_models/absent"),
        ("a/b/c", "there is no directory a/b/c"),
        ("elsewhere/x/SmolLM2-135M-Instruct", "Run `raft prepare` for the embedded model"),
    ],
)
def test_missing_directory(name: str, message: str) -> None:
    for load in (load_causal_lm, load_tokenizer, load_classifier):
        with pytest.raises(UserError, match=message):
            load(named(name))  # type: ignore[operator]


def test_directory_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reward_model_or_path: could not load"):
        load_config(str(tmp_path), flag="--reward_model_or_path")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match=r"--model_name_or_path: could not load .*") as caught:
        load_causal_lm(named(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(tiny_model: str, tmp_path: Path) -> None:
    """A .bin file can run code when it is opened."""
    for path in Path(tiny_model).iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin alone, a format that can run code"):
        load_causal_lm(named(str(tmp_path)))


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_does_not_depend_on_precision_or_kind(tiny_model: str, tmp_path: Path) -> None:
    expected = fingerprint(load_causal_lm(named(tiny_model)))
    assert len(expected) == 16
    assert fingerprint(load_causal_lm(named(tiny_model), dtype=torch.bfloat16)) == expected
    assert fingerprint(load_classifier(named(tiny_model), num_labels=1)) == expected
    load_causal_lm(named(tiny_model), dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert fingerprint(load_causal_lm(named(str(tmp_path)))) == expected  # from a bf16 file


@pytest.mark.parametrize("reward", [False, True])
def test_fingerprint_is_the_same_below_an_adapter(tiny_model: str, reward: bool) -> None:
    expected = fingerprint(load_causal_lm(named(tiny_model)))
    model = load_classifier(named(tiny_model), num_labels=1) if reward else load_causal_lm(named(tiny_model))
    task, heads = ("SEQ_CLS", ["score"]) if reward else ("CAUSAL_LM", None)
    adapted = attach(model, LoraConfig(use_lora=True), task=task, modules_to_save=heads)
    assert adapted.raft_base_fingerprint == fingerprint(adapted) == expected
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name or "score" in name
            parameter.data.normal_()
    assert fingerprint(adapted) == expected  # what is trained does not count


def test_fingerprint_tells_other_weights(tiny_model: str, tmp_path: Path) -> None:
    build_model(tmp_path / "other", seed=9)
    expected = fingerprint(load_causal_lm(named(tiny_model)))
    assert fingerprint(load_causal_lm(named(str(tmp_path / "other")))) != expected
    model = load_causal_lm(named(tiny_model))
    for name, parameter in model.named_parameters():
        before = parameter.data.clone()
        parameter.data.mul_(1.02)
        assert fingerprint(model) != expected, name
        parameter.data.copy_(before)
    assert fingerprint(model) == expected


def test_fingerprint_samples_from_first_to_last() -> None:
    """16 of 31 values: 0, 2, 4, ..., 30; both ends are among them, odd places are not."""
    layer = torch.nn.Linear(31, 1, bias=False)
    layer.weight.data = torch.arange(31.0)[None]
    expected = fingerprint(layer)
    for place in range(31):
        layer.weight.data[0, place] += 100
        assert (fingerprint(layer) == expected) == (place % 2 == 1), place
        layer.weight.data[0, place] -= 100
