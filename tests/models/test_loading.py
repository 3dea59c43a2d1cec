"""Models load as they are or say why not; a fingerprint knows weights, whatever they are stored in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    DebertaV2Config,
    GPTNeoConfig,
    RobertaConfig,
)

from raft.arguments import from_dict, to_dict
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
from raft.planning.models import score_model, shape_of
from raft.resuming import refuse_changes, take_over
from raft.stages.sft_config import SFTConfig
from tests.adapters import build_adapter
from tests.conftest import build_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


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


def test_the_directory_of_a_run_names_its_models(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    for models, told in (([], " that has no model yet"), (["final"], f"; give {run}/final."),
                         (["best"], f"; give {run}/best or {run}/final.")):  # fmt: skip
        for model in models:
            (run / model).mkdir()
        with pytest.raises(UserError) as caught:
            load_config(str(run), flag="--reward")
        assert str(caught.value).startswith(f"--reward: {run} is the directory of a run{told}")


def test_directory_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reward_model_or_path: could not load"):
        load_config(str(tmp_path), flag="--reward_model_or_path")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match=r"--model_name_or_path: could not load .*") as caught:
        load_causal_lm(named(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_architecture_without_a_model_of_the_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cohere"}))
    said = rf"^--reward: transformers has no SequenceClassification model for {tmp_path} \(CohereConfig\)\.$"
    with pytest.raises(UserError, match=said):
        load_classifier(named(str(tmp_path)), flag="--reward")


def test_pickled_weights_are_not_read(tiny_model: str, tmp_path: Path) -> None:
    """A .bin file can run code when it is opened."""
    for path in Path(tiny_model).iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin alone, a format that can run code"):
        load_causal_lm(named(str(tmp_path)))


# ---------------------------------------------------------------- attention

WITHOUT_SDPA = [
    BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4),
    DebertaV2Config(vocab_size=384, num_hidden_layers=1, **SIZES),
    GPTNeoConfig(vocab_size=384, num_layers=2, attention_types=[[["global", "local"], 1]], **SIZES),
]


def save_classifier(config: Any, directory: Path, num_labels: int = 1) -> str:
    config.num_labels, config.pad_token_id = num_labels, 0
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("config", WITHOUT_SDPA, ids=lambda config: config.model_type)
def test_attention_is_eager_where_a_model_has_no_sdpa(config: Any, tmp_path: Path) -> None:
    path = save_classifier(config, tmp_path)
    assert load_classifier(named(path)).config._attn_implementation == "eager"
    planned = score_model(shape_of(named(path), []), named(path), LoraConfig(), "fp32").classifier
    assert planned.config._attn_implementation == "eager"
    for asked in ("sdpa", "flex_attention"):
        wrong = ModelConfig(model_name_or_path=path, attn_implementation=asked)
        for load in (load_classifier, lambda wrong: score_model(shape_of(wrong, []), wrong, LoraConfig(), "fp32")):
            with pytest.raises(UserError) as caught:
                load(wrong)
            assert str(caught.value) == (
                f"--attn_implementation: found {asked}, which {path} does not support ({config.architectures[0]}); "
                "give --attn_implementation eager, or leave it at auto."
            )


@pytest.mark.parametrize(("asked", "expected"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_is_sdpa_where_a_model_has_it(tiny_model: str, asked: str, expected: str) -> None:
    assert ModelConfig().attn_implementation == "auto"
    config = ModelConfig(model_name_or_path=tiny_model, attn_implementation=asked)
    assert load_causal_lm(config).config._attn_implementation == expected


def test_run_of_before_there_was_auto_resumes_with_its_attention() -> None:
    recorded = to_dict(from_dict(SFTConfig, {"dataset_path": "rows", "attn_implementation": "sdpa"}))
    resumed = from_dict(SFTConfig, {"dataset_path": "rows"})
    take_over(resumed, recorded)
    assert resumed.model.attn_implementation == "sdpa"
    assert refuse_changes(resumed, recorded) == []


# ---------------------------------------------------------------- heads


def test_classifier_with_another_head_is_refused(tiny_model: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    three = save_classifier(config, tmp_path / "three", num_labels=3)
    with pytest.raises(UserError) as caught:
        load_classifier(named(three), num_labels=1)
    assert str(caught.value) == (
        f"--model_name_or_path: {three} has a classification head of 3 outputs; allowed are a language model, or a "
        "reward model with one output."
    )
    assert load_classifier(named(three)).score.weight.shape == (3, 32)
    assert load_classifier(named(save_classifier(config, tmp_path / "one")), num_labels=1).score.out_features == 1


def test_encoder_with_another_head_is_refused(tmp_path: Path) -> None:
    config = RobertaConfig(vocab_size=384, num_hidden_layers=1, **SIZES)
    path = save_classifier(config, tmp_path, num_labels=2)
    with pytest.raises(UserError, match=r"has a classification head of 2 outputs; allowed are a language model"):
        load_classifier(named(path), num_labels=1)


def test_weights_of_other_shapes_than_configured_are_refused(tiny_model: str, tmp_path: Path) -> None:
    for path in Path(tiny_model).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 40}))
    with pytest.raises(UserError) as caught:
        load_causal_lm(named(str(tmp_path)))
    told = f"--model_name_or_path: {tmp_path} does not fit its config.json: model.layers.0.mlp.down_proj.weight is "
    assert str(caught.value).startswith(told)


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
