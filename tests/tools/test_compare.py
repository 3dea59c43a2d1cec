"""`raft compare`: every answer is that of its model, on its prompt, with its score; in every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raft.arguments import parse
from raft.errors import UserError
from raft.run_directory import read_jsonl
from raft.tools.compare import main
from raft.tools.compare_config import CompareConfig
from tests.adapters import build_adapter
from tests.conftest import run_raft

Compare = Callable[..., Any]


@pytest.fixture
def compare(prompts: str, tmp_path: Path) -> Compare:
    """Compare models in this process, greedily, and give the JSON."""

    def run(*arguments: object) -> Any:
        flags = ["--output_file", tmp_path / "out.json", tmp_path / "out.md", "--max_new_tokens", 9, "--dtype", "fp32"]
        flags += ["--temperature", 0, *([] if "--dataset_path" in arguments else ["--dataset_path", prompts])]
        main(parse(CompareConfig, [str(one) for one in [*arguments, *flags]], prog="raft compare"))
        return json.loads((tmp_path / "out.json").read_text())

    return run


def greedy(directory: str, text: str, count: int = 9) -> list[int]:
    """A response by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer(text, return_tensors="pt")
    output: list[int] = model.generate(**ids, do_sample=False, max_new_tokens=count)[0].tolist()
    return output[ids.input_ids.shape[1] :]


def test_every_answer_and_score_is_that_of_plain_transformers(
    compare: Compare, talkative_model: str, tiny_model: str, tiny_reward_model: str, prompts: str
) -> None:
    flags = ["--system", "Be nice", "--num_rows", 5, "--inference_batch_size_per_device", 2]
    flags += ["--reward_model_or_path", tiny_reward_model, "--reward_dtype", "fp32"]
    found = compare(talkative_model, tiny_model, *flags)
    tokenizer = AutoTokenizer.from_pretrained(talkative_model)
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    assert list(found["models"]) == ["talkative", "tiny"]
    assert [row["prompt_id"] for row in found["prompts"]] == [f"p{i}" for i in range(5)]
    for row, given in zip(found["prompts"], read_jsonl(Path(prompts)), strict=False):
        assert row["prompt"] == [
            {"role": "system", "content": "Be nice"},
            {"role": "user", "content": given["prompt"]},
        ]
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for name, directory in (("talkative", talkative_model), ("tiny", tiny_model)):
            answer, tokens = row["responses"][name], greedy(directory, text)
            assert answer["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
            assert answer["num_tokens"] == len(tokens)
            assert answer["finish_reason"] == ("eos" if tokens[-1] == tokenizer.eos_token_id else "length")
            with torch.no_grad():
                ids = tokenizer(text + answer["text"] + tokenizer.eos_token, return_tensors="pt").input_ids
                score = float(judge(input_ids=ids).logits[0, 0])
            assert answer["reward"] == answer["scores"]["reward_model"] == pytest.approx(score, abs=1e-4)


def test_rewards_are_there_where_they_are_asked_for(
    compare: Compare, tiny_model: str, tiny_reward_model: str, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    build_adapter(tiny_model, adapter)
    rewards = ["--reward_model_or_path", tiny_reward_model]
    assert "reward" in compare(tiny_model, adapter, "--num_rows", 2, *rewards)["models"]["adapter"]
    markdown = (tmp_path / "out.md").read_text()
    assert "| adapter |" in markdown
    assert "mean reward" in markdown
    # Normalised over the answers of both models together: their means cancel, and neither is 0 by itself.
    normalized = compare(tiny_model, adapter, "--num_rows", 2, *rewards, "--reward_normalization", "batch")["models"]
    means = [one["reward"] for one in normalized.values()]
    assert sum(means) == pytest.approx(0, abs=1e-6)
    assert abs(means[0]) > 1e-3
    without = compare(tiny_model, adapter, "--num_rows", 2, *rewards, "--no_score")
    assert "reward" not in without["models"]["adapter"]
    assert "reward" not in compare(tiny_model, "--num_rows", 2)["models"]["tiny"]


def test_sources_are_given_what_training_gives_them(compare: Compare, tiny_model: str, talkative_model: str) -> None:
    found = compare(tiny_model, talkative_model, "--num_rows", 4, "--reward", "rule:length,max=6")
    lengths = []
    for row in found["prompts"]:
        for answer in row["responses"].values():
            assert answer["reward"] == (-1 if answer["num_tokens"] > 6 else 0)
            lengths.append(answer["num_tokens"] > 6)
    assert set(lengths) == {True, False}


def test_a_model_that_does_not_read_the_system_message_is_named(
    compare: Compare, tiny_model: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deaf = shutil.copytree(tiny_model, tmp_path / "deaf")
    template = (deaf / "chat_template.jinja").read_text()
    without = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
    (deaf / "chat_template.jinja").write_text(without + template)
    compare(tiny_model, deaf, "--system", "Be nice", "--num_rows", 2)
    told = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert told == ["deaf: 2 of 2 prompts: system message passed over by the chat template"]


def test_prompts_that_are_too_long_are_left_out_for_all(
    compare: Compare, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "Hello"}, {"prompt": "x " * 600}, {"prompt": "Bread"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(tiny_model, "--dataset_path", path)
    assert [row["prompt"][0]["content"] for row in found["prompts"]] == ["Hello", "Bread"]
    assert [row["prompt_id"] for row in found["prompts"]] == [f"{path}:1", f"{path}:3"]
    assert "1 of 3 prompts are too long for a model and left out" in capsys.readouterr().err
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match="every prompt has more tokens than the 503 that a model reads"):
        compare(tiny_model, "--dataset_path", path)


def test_two_processes_write_what_one_does(tiny_model: str, talkative_model: str, prompts: str, tmp_path: Path) -> None:
    flags = [tiny_model, talkative_model, "--dataset_path", prompts, "--max_new_tokens", 9, "--dtype", "fp32"]
    flags += ["--inference_batch_size_per_device", 5, "--output_file"]
    main(parse(CompareConfig, [str(flag) for flag in [*flags, tmp_path / "one.html"]], prog="raft compare"))
    done = run_raft("compare", *flags, tmp_path / "two.html", num_processes=2)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert done.stderr.count("wrote ") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--models is required"),
        (["a", "--output_file", "table.pdf"], r"--output_file: found table.pdf, expected a file that ends with .md"),
        (["a", "--inference_batch_size_per_device", "0"], "--inference_batch_size_per_device: found 0"),
        (["a", "--temperature=-1"], "--temperature: found -1.0"),
    ],
)
def test_mistakes_are_told_by_the_flag(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(CompareConfig, flags, prog="raft compare")
