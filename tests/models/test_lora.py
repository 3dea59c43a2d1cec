"""Adapters: what is trained, what is saved, and which base models they take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.models.loading import load_causal_lm, load_classifier
from raft.models.lora import adapt, adapter_base, adapter_task, attach, load_adapter, load_merged, refuse_wrong_base
from raft.rewards.reward_model import load_reward_model
from raft.rewards.source import Candidate
from tests.adapters import build_adapter
from tests.conftest import build_model

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def load(name: str) -> Any:
    return load_causal_lm(ModelConfig(model_name_or_path=name)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 60, 61, 62, 200, 7]])).logits[0]


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "policy")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "other"
    build_model(directory, seed=7)
    return str(directory)


# ---------------------------------------------------------------- attach


def test_fresh_adapter_changes_nothing_and_alone_is_trained(tiny_model: str) -> None:
    before = logits(load(tiny_model))
    adapted = attach(load(tiny_model), LoraConfig(use_lora=True, lora_r=4), task="CAUSAL_LM").eval()
    assert torch.equal(logits(adapted), before)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == LAYERS
    assert len(trained) == 2 * 7 * 2  # layers x modules x (A and B)


def test_score_head_is_trained_whole(tiny_model: str) -> None:
    model = load_classifier(ModelConfig(model_name_or_path=tiny_model), num_labels=1)
    settings = LoraConfig(use_lora=True, lora_target_modules=["q_proj", "v_proj"])
    adapted = attach(model, settings, task="SEQ_CLS", modules_to_save=["score"])
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert sum("lora_" in name for name in trained) == 2 * 2 * 2
    (head,) = (name for name in trained if "lora_" not in name)
    assert head.endswith("score.modules_to_save.default.weight")


def test_scale_is_alpha_over_rank(tiny_model: str) -> None:
    """W + alpha / r * B A, by hand."""
    model = load(tiny_model)
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    settings = LoraConfig(use_lora=True, lora_r=4, lora_alpha=10, lora_target_modules=["q_proj"])
    adapted = attach(model, settings, task="CAUSAL_LM")
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    up.data.normal_()
    merged = adapted.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged.detach(), weight + 2.5 * (up @ down).detach())


def test_unknown_target_module(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"--lora_target_modules: .*no_such_layer"):
        attach(load(tiny_model), LoraConfig(use_lora=True, lora_target_modules=["no_such_layer"]), task="CAUSAL_LM")
    with pytest.raises(UserError, match=r"--lora_target_modules: found v_prj, but the model has no module of"):
        attach(load(tiny_model), LoraConfig(use_lora=True, lora_target_modules=["q_proj", "v_prj"]), task="CAUSAL_LM")
    attach(load(tiny_model), LoraConfig(use_lora=True, lora_target_modules=["self_attn.q_proj"]), task="CAUSAL_LM")


# ---------------------------------------------------------------- load


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]])
def test_a_head_that_shares_the_embeddings_weights_is_no_target(tiny_model: str, targets: list[str]) -> None:
    """An adapter of one changes the other too once it is merged: another model than the trained one."""
    config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    with pytest.raises(UserError, match=rf"--lora_target_modules: found .*{targets[-1]}, whose weights are those of"):
        adapt(LlamaForCausalLM(config), LoraConfig(lora_target_modules=targets), task="CAUSAL_LM")
    untied = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    assert adapt(LlamaForCausalLM(untied), LoraConfig(lora_target_modules=targets), task="CAUSAL_LM")


def test_saved_adapter_is_what_peft_loads(tiny_model: str, adapter: str) -> None:
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    ours = load_adapter(load(tiny_model), adapter).eval()
    assert torch.equal(logits(ours), logits(plain))
    assert (logits(ours) - logits(load(tiny_model))).abs().max() > 0.1
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_model


def test_wrong_base_is_refused(adapter: str, other_model: str) -> None:
    with pytest.raises(UserError, match=r"its base has fingerprint \w{16}, the given one has \w{16}\.$"):
        load_adapter(load(other_model), adapter)
    config = ModelConfig(model_name_or_path=adapter)
    with pytest.raises(UserError, match="another base model"):
        load_merged(config, AutoModelForCausalLM, base=other_model, dtype=torch.float32)


def test_record_may_be_absent_but_shapes_must_fit(
    tiny_model: str, adapter: str, other_model: str, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((Path(adapter) / name).read_bytes())
    refuse_wrong_base(load(other_model), str(tmp_path))  # as other tools save adapters: nothing to compare with
    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    with pytest.raises(UserError, match="the adapter does not fit this base model") as caught:
        load_adapter(small, str(tmp_path))
    assert "\n" not in str(caught.value)


LAYER = "base_model.model.model.layers."


@pytest.mark.filterwarnings("error:Found missing adapter keys")  # peft's own words are of no use beside ours
@pytest.mark.parametrize(
    ("rename", "lacks", "holds"),
    [
        (lambda name: name.replace(".model.layers", ".layers"), 28, 28),
        (lambda name: None if ".layers.1." in name else name, 14, 0),
        (lambda name: None if f"{LAYER}1.mlp.up_proj.lora_B" in name else name, 1, 0),
        (lambda name: name.replace("layers.1", "layers.9"), 14, 14),
    ],
    ids=["renamed", "a layer less", "a matrix less", "of another layer"],
)
@pytest.mark.parametrize("reward", [False, True])
def test_matrices_that_are_missing_or_have_other_names_are_refused(
    tiny_model: str, adapter: str, tmp_path: Path, rename: Any, lacks: int, holds: int, reward: bool
) -> None:
    if reward:
        adapter = build_adapter(tiny_model, tmp_path / "adapter", reward=True)
    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    renamed = {name: rename(name) if "lora_" in name else name for name in weights}
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    save_file({renamed[n]: weight for n, weight in weights.items() if renamed[n]}, broken / "adapter_model.safetensors")
    missing = min(renamed.keys() - renamed.values())
    many = "matrices" if lacks > 1 else "matrix"
    expected = f"{broken}: adapter_model.safetensors lacks {lacks} {many} of the adapter, such as {missing}"
    if holds:
        odd = min(name for name in renamed.values() if name not in renamed)
        expected += f", and holds {holds} matrices that have no place in this base model, such as {odd}"
    config = ModelConfig(model_name_or_path=tiny_model)
    base: Any = load_classifier(config, num_labels=1) if reward else load_causal_lm(config)
    with pytest.raises(UserError) as caught:
        load_adapter(base, str(broken))
    assert str(caught.value) == f"{expected}."


def test_matrices_without_a_place_are_refused(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    weights = load_file(broken / "adapter_model.safetensors")
    extra = f"{LAYER}7.mlp.up_proj.lora_A.weight"
    save_file(weights | {extra: torch.ones(4, 32)}, broken / "adapter_model.safetensors")
    with pytest.raises(UserError) as caught:
        load(str(broken))
    assert str(caught.value) == (
        f"{broken}: adapter_model.safetensors holds 1 matrix that has no place in this base model, such as {extra}."
    )


def test_module_that_is_not_saved_whole_is_refused(tiny_model: str, tmp_path: Path) -> None:
    adapter = Path(build_adapter(tiny_model, tmp_path / "adapter", reward=True))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: weights[name] for name in weights if "score" not in name}, adapter / "adapter_model.safetensors")
    model: Any = load_classifier(ModelConfig(model_name_or_path=tiny_model), num_labels=1)
    with pytest.raises(UserError, match=r"adapter: adapter_model\.safetensors lacks .*score\.weight, a module saved"):
        load_adapter(model, str(adapter))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, on tied weights
def test_adapter_of_a_head_for_words_goes_below_a_classifier(tiny_model: str, tmp_path: Path) -> None:
    """What it adds to the language model's head has no place there, and needs none."""
    untied = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    LlamaForCausalLM(untied).save_pretrained(tmp_path / "lm")
    shutil.copy(Path(tiny_model) / "tokenizer.json", tmp_path / "lm")
    model = load(str(tmp_path / "lm"))
    settings = LoraConfig(use_lora=True, lora_target_modules=["q_proj", "lm_head"])
    attach(model, settings, task="CAUSAL_LM").save_pretrained(tmp_path / "adapter")
    assert any("lm_head.lora_A" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    classifier: Any = load_classifier(ModelConfig(model_name_or_path=str(tmp_path / "lm")), num_labels=1)
    load_adapter(classifier, str(tmp_path / "adapter"))


def test_base_is_the_given_one_then_the_named_one(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    assert adapter_base(adapter) == tiny_model
    assert adapter_base(adapter, base="mine") == "mine"
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(UserError, match="names no base_model_name_or_path"):
        adapter_base(str(tmp_path))


@pytest.mark.parametrize(
    ("task", "expected"), [("CAUSAL_LM", "CAUSAL_LM"), ("SEQ_CLS", "SEQ_CLS"), (None, "CAUSAL_LM")]
)
def test_task(task: str | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": task}))
    assert adapter_task(str(tmp_path)) == expected


def test_merged_model_is_rounded_once(tiny_model: str, adapter: str) -> None:
    """Merging happens in fp32: the bf16 weights are the fp32 ones rounded, not a sum of rounded ones."""
    config = ModelConfig(model_name_or_path=adapter)
    exact = load_merged(config, AutoModelForCausalLM, dtype=torch.float32)
    assert all(one.requires_grad for one in exact.parameters()), "it can be trained as any other model"
    rounded = load_merged(config, AutoModelForCausalLM, dtype=torch.bfloat16)
    for (name, one), (_, other) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other), name


def test_adapters_stack(adapter: str, tmp_path: Path) -> None:
    """LoRA fine-tuning, then LoRA upon it: the second one's base is the first one, merged."""
    second = build_adapter(adapter, tmp_path / "second", seed=3)
    plain = load(adapter)
    expected = peft.PeftModel.from_pretrained(plain, second).eval()
    torch.testing.assert_close(logits(load(second)), logits(expected), rtol=0, atol=2e-5)


def test_reward_adapter_upon_a_fine_tuned_adapter(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    reward = build_adapter(adapter, tmp_path / "reward", reward=True)
    candidates = [Candidate([{"role": "user", "content": "Hello"}], "thank you")]
    model = load_reward_model(reward, base=None, dtype="fp32", batch_size=1)
    stacked = model.score(candidates, name="a", progress=None)
    with pytest.raises(UserError, match="another base model"):
        load_reward_model(reward, base=tiny_model, dtype="fp32", batch_size=1)
    base = load_classifier(ModelConfig(model_name_or_path=adapter), num_labels=1)
    plain = peft.PeftModel.from_pretrained(base, reward).eval()
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nthank you<|im_end|>"
    with torch.no_grad():
        expected = plain(**model.tokenizer(text, return_tensors="pt")).logits.item()
    assert stacked == [pytest.approx(expected, abs=1e-5)]
