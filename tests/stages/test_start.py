"""How a stage begins: settings that can not be are refused, settings that change nothing are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raft.arguments import parse
from raft.cli import main
from raft.errors import UserError
from raft.resuming import refuse_changes, take_over
from raft.stages.align_config import AlignConfig
from raft.stages.common import settle_reward_dtype, without_effect
from raft.stages.reward_config import RewardModelingConfig
from raft.stages.sft_config import SFTConfig


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: str) -> Path:
    """As much of an adapter as it takes to be one."""
    (tmp_path / "adapter").mkdir()
    settings = {"base_model_name_or_path": tiny_model, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    return tmp_path / "adapter"


@pytest.mark.parametrize(("command", "flags"), [("sft", ["--use_lora"]), ("reward", []), ("align", ["--use_lora"])])
def test_an_adapter_upon_an_adapter_is_refused(
    command: str, flags: list[str], adapter: Path, preferences: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """peft would load what was trained here on the base below both, without a word."""
    run = adapter.parent / "run"
    arguments = ["--model_name_or_path", adapter, "--dataset_path", preferences, "--output_dir", run, *flags]
    assert main([command, *map(str, arguments)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"raft {command}: error: --model_name_or_path: found the LoRA adapter {adapter}, allowed with --use_lora is a "
        f"whole model, since peft knows no adapter upon an adapter; run `raft merge --adapter {adapter} --output_dir "
        "MERGED` first and give MERGED."
    )
    assert not run.exists()


ROWS = ["--dataset_path", "rows.jsonl"]
HELD_OUT = [*ROWS, "--validation_split_percentage", "5"]


@pytest.mark.parametrize(
    ("config_class", "flags", "told"),
    [
        (SFTConfig, ROWS, []),
        (SFTConfig, [*ROWS, "--use_lora", "--lora_r", "4"], []),
        (SFTConfig, [*HELD_OUT, "--eval_steps", "10"], []),
        (RewardModelingConfig, [*ROWS, "--lora_r", "4", "--eval_steps", "10"], []),
        (AlignConfig, [], []),
        (SFTConfig, [*ROWS, "--lora_r", "4"], ["--lora_r 4 has no effect without --use_lora"]),
        (
            RewardModelingConfig,
            [*ROWS, "--no_use_lora", "--lora_alpha", "8", "--lora_target_modules", "q_proj,v_proj"],
            [
                "--lora_alpha 8.0 has no effect without --use_lora",
                "--lora_target_modules q_proj v_proj has no effect without --use_lora",
            ],
        ),
        (
            SFTConfig,
            [*ROWS, "--eval_steps", "10"],
            ["--eval_steps 10 has no effect without held-out rows: --validation_split_percentage is 0"],
        ),
        (
            AlignConfig,
            ["--eval_steps", "10"],
            ["--eval_steps 10 has no effect in raft align, which has --eval_every_n_iterations"],
        ),
    ],
)
def test_flags_without_effect_are_told(config_class: Any, flags: list[str], told: list[str]) -> None:
    assert list(without_effect(parse(config_class, flags, prog="raft"))) == told


@pytest.mark.parametrize("alpha", ["0", "-16"])
def test_the_scale_of_adapters_is_above_0(alpha: str) -> None:
    with pytest.raises(UserError, match=rf"--lora_alpha: found {alpha}, allowed are finite numbers above 0"):
        parse(SFTConfig, [*ROWS, "--use_lora", "--lora_alpha", alpha], prog="raft sft")


@pytest.mark.parametrize(
    ("flags", "recorded", "settled"),
    [
        (["--dtype", "fp32"], {}, "fp32"),
        (["--dtype", "bf16"], {}, "bf16"),
        (["--dtype", "fp32", "--reward_dtype", "bf16"], {}, "bf16"),
        (["--dtype", "fp32"], {"reward": {"reward_dtype": "auto"}}, "auto"),
        (["--dtype", "fp32"], {"reward": {"reward_dtype": "bf16"}}, "bf16"),
    ],
)
def test_reward_models_compute_as_the_policy_where_no_flag_says_otherwise(
    flags: list[str], recorded: dict[str, Any], settled: str
) -> None:
    config = parse(AlignConfig, flags, prog="raft align")
    take_over(config, recorded)
    settle_reward_dtype(config, recorded)
    assert config.reward.reward_dtype == settled
    assert not refuse_changes(config, recorded)
    settle_reward_dtype(parse(SFTConfig, ROWS, prog="raft sft"), {})  # which has no rewards


def test_what_is_trained_on_is_told_in_words(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from raft.data.templates import ConversationTemplate
    from raft.stages.sft import load_data

    texts = [{"prompt": "Hello", "response": "there " * length} for length in (1, 2, 3, 99, 98, 1)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in [*texts, {"prompt": "and?"}, {"text": "So long."}]))
    flags = ["--dataset_path", str(rows), "--max_length", "64", "--validation_split_percentage", "30"]
    template = ConversationTemplate(AutoTokenizer.from_pretrained(tiny_model))
    train, held_out = load_data(parse(SFTConfig, [*flags, "--overlong", "drop"], prog="raft sft"), template)
    assert (len(train), len(held_out)) == (3, 2)
    assert capsys.readouterr().out.splitlines() == [
        "to train on: 4 rows, in 3 rows of tokens; 1 x dropped: too long",
        "held out: 3 rows, in 2 rows of tokens; 1 x dropped: too long",
        "left out: 1 x prompt without a response",
    ]
