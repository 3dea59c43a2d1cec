"""What the sampler can not draw from is refused by name before anything is drawn, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
)

from raft import cli
from raft.errors import UserError
from raft.rollout.fitting import (
    refuse_other_tokenizer,
    refuse_recurrent,
    refuse_unknown_tokens,
    refuse_without_cache,
    rope_warning,
)
from tests.conftest import run_raft

SHAPE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
STATES: dict[str, Any] = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}


def lfm2(vocab_size: int = 40) -> Lfm2Config:
    return Lfm2Config(**SHAPE | {"vocab_size": vocab_size}, layer_types=["conv", "full_attention"])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GPT2LMHeadModel, GPT2Config(**SMALL)),
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, sliding_window=4)),  # a sliding window, and all
    ],
)
def test_keys_and_values_are_taken(kind: Any, config: Any) -> None:
    refuse_without_cache(kind(config).eval(), name="m", flag="--model_name_or_path")


@pytest.mark.parametrize(
    ("kind", "config", "by_configuration"),
    [
        (Lfm2ForCausalLM, lfm2(), True),
        (FalconH1ForCausalLM, FalconH1Config(**SHAPE, **STATES, pad_token_id=0), True),
        (MambaForCausalLM, MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4), True),
        (OpenAIGPTLMHeadModel, OpenAIGPTConfig(**SMALL), False),  # no cache at all
    ],
)
def test_recurrent_layers_and_models_without_a_cache_are_refused(
    kind: Any, config: Any, by_configuration: bool
) -> None:
    said = rf"^--models: found some/model \({config.model_type}\), which .*; allowed are models that keep keys"
    with pytest.raises(UserError, match=said + r" and values of every token and nothing else; try another\.$"):
        refuse_without_cache(kind(config).eval(), name="some/model", flag="--models", advice="; try another")
    if by_configuration:
        with pytest.raises(UserError, match=said):
            refuse_recurrent(config, name="some/model", flag="--models")


def test_states_that_transformers_marks_are_refused_without_a_try(tiny_model: str) -> None:
    """RWKV and xLSTM: no layer types tell of them, and the latter fails with two prompts."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model._is_stateful = True
    with pytest.raises(UserError, match="which keeps recurrent states"):
        refuse_without_cache(model, name="m", flag="--models")


def test_tokens_without_an_embedding_are_refused(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert pad < eos
    refuse_other_tokenizer(tokenizer, eos + 1, name="m", where="--models")
    with pytest.raises(UserError, match=rf"^--models: a token that ends responses has id {eos}, allowed are ids below"):
        refuse_other_tokenizer(tokenizer, eos, name="m", where="--models")
    with pytest.raises(UserError, match=f"the pad token has id {pad}"):
        refuse_other_tokenizer(tokenizer, pad, name="m", where="--models")
    refuse_unknown_tokens([[1, 8], []], 9, name="m", where="--models")
    with pytest.raises(UserError, match="a prompt has id 9, allowed are ids below 9, the rows of the embedding of m;"):
        refuse_unknown_tokens([[1], [9, 8]], 9, name="m", where="--models")


def test_rotary_positions_that_change_with_the_longest_sequence_are_told() -> None:
    factors: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 32}
    config = Phi3Config(**SHAPE, **lengths, pad_token_id=0, rope_parameters=factors)
    assert rope_warning(config, 32, name="m", flags="--a") is None
    warning = rope_warning(config, 33, name="some/model", flags="--a")
    assert warning is not None
    assert "a sequence may have 33 tokens; past 32 the rotary positions of some/model depend on the longest" in warning
    assert rope_warning(LlamaConfig(**SHAPE), 10**6, name="m", flags="--a") is None
    assert rope_warning(GPT2Config(**SMALL), 10**6, name="m", flags="--a") is None


@pytest.fixture(scope="module")
def unfit(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model whose tokenizer has a pad token more than it has embeddings, and one with recurrent layers."""
    directory = tmp_path_factory.mktemp("unfit")
    shutil.copytree(tiny_model, directory / "larger")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    Lfm2ForCausalLM(lfm2(len(tokenizer))).save_pretrained(directory / "recurrent")
    tokenizer.save_pretrained(directory / "recurrent")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(directory / "larger")
    return {name: str(directory / name) for name in ("larger", "recurrent")}


@pytest.mark.parametrize(
    ("command", "which"),
    [
        *(("align", "larger"), ("align", "recurrent"), ("align --dry_run", "recurrent")),
        *(("compare", "larger"), ("compare", "recurrent"), ("chat", "recurrent")),
    ],
)
def test_commands_refuse_it_before_anything_runs(
    command: str, which: str, unfit: dict[str, str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, run = unfit[which], ["--dataset_path", prompts], tmp_path / "run"
    name, *more = command.split()
    flag, *flags = {
        "align": ["--model_name_or_path", model, *data, "--eval_dataset_path", prompts, "--output_dir", str(run)],
        "compare": ["--models", model, *data],
        "chat": ["--model_name_or_path", model],
    }[name]
    assert cli.main([name, flag, *flags, "--dtype", "fp32", *more]) == 2
    said = capsys.readouterr().err
    told = {"larger": "the pad token has id ", "recurrent": f"found {model} (lfm2), which has recurrent layers"}[which]
    assert f"raft {name}: error: {flag}: {told}" in said
    assert model in said
    assert ("--rollout_backend vllm" in said) == (name == "align" and which == "recurrent")
    assert not run.exists()


@pytest.mark.parametrize("command", ["align", "compare"])
def test_commands_tell_of_rotary_positions_that_change(
    command: str, tiny_model: str, tiny_reward_model: str, prompts: str, tmp_path: Path
) -> None:
    model = str(shutil.copytree(tiny_model, tmp_path / "dynamic"))
    settings = json.loads((tmp_path / "dynamic/config.json").read_text())
    settings["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}
    (tmp_path / "dynamic/config.json").write_text(json.dumps(settings))
    flags = {
        "align": [
            *("--model_name_or_path", model, "--reward_model_or_path", tiny_reward_model, "--num_raft_iteration", 1),
            *("--raft_batch_size", 1, "--output_max_length", 3, "--eval_dataset_path", "none"),
            *("--output_dir", tmp_path / "run", "--perplexity_num_texts", 0, "--kl_num_responses", 0),
        ],
        "compare": [model, "--num_rows", 2, "--max_new_tokens", 3],
    }[command]
    done = run_raft(command, *flags, "--dataset_path", prompts, "--dtype", "fp32")
    limits = {"align": "--prompt_max_length and --output_max_length", "compare": "--max_new_tokens"}[command]
    assert f"past 8 the rotary positions of {model} depend on the longest" in done.stderr
    assert f"({limits} can be lower)" in done.stderr
