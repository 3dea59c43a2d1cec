"""`raft score`: every kind of row gets the score it should, with its ids; accuracy on pairs; one or two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raft.arguments import parse
from raft.cli import main as raft_main
from raft.errors import UserError
from raft.rewards.reward_model import RewardModel
from raft.run_directory import read_jsonl
from raft.tools.score import main, pair_accuracy
from raft.tools.score_config import ScoreConfig
from tests.adapters import build_adapter
from tests.conftest import SENTENCES, run_raft

HH_RLHF = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf" / "harmless-base.jsonl.gz"


@pytest.fixture
def score(tiny_reward_model: str, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Score rows with the tiny reward model in fp32 and give the lines of the output file."""

    def run(rows: list[Any], *arguments: object) -> list[dict[str, Any]]:
        source, target = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = ["--dataset_path", source, "--output_file", target, "--reward_model_or_path", tiny_reward_model]
        flags += ["--reward_dtype", "fp32", *arguments]
        main(parse(ScoreConfig, [str(flag) for flag in flags], prog="raft score"))
        return read_jsonl(target)

    return run


@pytest.fixture
def expected(tiny_reward_model: str) -> Callable[[str], float]:
    """The score of a text by transformers alone: one row, no padding, so the last token is the last one."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)

    @torch.no_grad()
    def score_of(text: str) -> float:
        return model(**tokenizer(text, return_tensors="pt")).logits.item()

    return score_of


def chatml(*contents: str) -> str:
    """User and assistant in turn, ended by the EOS of the last response."""
    roles = ["user", "assistant"] * len(contents)
    turns = [f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in zip(roles, contents, strict=False)]
    return "\n".join(turns)


def close(value: float) -> Any:
    return pytest.approx(value, abs=1e-5)


# ---------------------------------------------------------------- kinds of rows


def test_responses(score: Callable[..., list[dict[str, Any]]], expected: Callable[[str], float]) -> None:
    rows = [
        {"prompt": "Hello there", "response": "I am fine.", "id": 17},
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": "abcd"[i]} for i in range(4)]},
        {"instruction": "Bake", "input": "bread", "output": "Until brown."},
    ]
    found = score(rows)
    assert [row["score"] for row in found] == [
        close(expected(chatml("Hello there", "I am fine."))),
        close(expected(chatml("a", "b", "c", "d"))),
        close(expected(chatml("Bake\nbread", "Until brown."))),
    ]
    assert found[0]["id"] == 17
    assert found[0]["prompt"] == [{"role": "user", "content": "Hello there"}]
    assert found[0]["response"] == "I am fine."
    assert [turn["content"] for turn in found[1]["prompt"]] == ["a", "b", "c"]
    assert found[1]["response"] == "d"
    assert [row["source"].rsplit(":")[-1] for row in found] == ["1", "2", "3"]
    assert "output" not in found[2]  # the response once, not twice


def test_pairs(
    score: Callable[..., list[dict[str, Any]]],
    expected: Callable[[str], float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        {"pair_id": f"p{i}", "prompt": SENTENCES[i], "chosen": SENTENCES[i - 1], "rejected": SENTENCES[i - 2]}
        for i in range(4)
    ]
    found = score(rows)
    chosen = [expected(chatml(row["prompt"], row["chosen"])) for row in rows]
    rejected = [expected(chatml(row["prompt"], row["rejected"])) for row in rows]
    assert [row["chosen_score"] for row in found] == [close(value) for value in chosen]
    assert [row["rejected_score"] for row in found] == [close(value) for value in rejected]
    assert [row["pair_id"] for row in found] == ["p0", "p1", "p2", "p3"]
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert json.loads(out[0]) == {
        "accuracy": sum(margin > 0 for margin in margins) / 4,
        "num_pairs": 4,
        "num_ties": 0,
        "num_unscored": 0,
        "mean_margin": close(sum(margins) / 4),
    }


def test_ties_count_as_wrong() -> None:
    pairs = [(2.0, 1.0), (0.5, 0.5), (-1.0, 1.0), (3.0, -1.5)]
    rows = [{"chosen_score": chosen, "rejected_score": rejected} for chosen, rejected in pairs]
    expected = {"accuracy": 0.5, "num_pairs": 4, "num_ties": 1, "num_unscored": 0, "mean_margin": 3.5 / 4}
    assert pair_accuracy(rows) == expected


def test_score_that_is_no_number_is_null_and_wrong(
    score: Callable[..., list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RewardModel, "score", lambda self, rows, name, progress: [float("nan"), 0.5, 2.0, 1.0])
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert [row["chosen_score"] for row in score([pair, pair])] == [None, 2.0]
    found = json.loads(capsys.readouterr().out)
    assert found == {"accuracy": 0.5, "num_pairs": 2, "num_ties": 0, "num_unscored": 1, "mean_margin": 1.0}
    assert math.isnan(pair_accuracy([{"chosen_score": 1.0, "rejected_score": math.nan}])["mean_margin"])


def test_plain_text_is_the_response_to_an_empty_message(
    score: Callable[..., list[dict[str, Any]]],
    expected: Callable[[str], float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (found,) = score([{"text": "Bread needs flour.", "url": "example.org"}])
    assert found["score"] == close(expected(chatml("", "Bread needs flour.")))
    assert found["text"] == "Bread needs flour."
    assert found["url"] == "example.org"
    assert capsys.readouterr().out == ""  # no pairs, no accuracy


def test_samples_of_a_run(score: Callable[..., list[dict[str, Any]]], expected: Callable[[str], float]) -> None:
    """The response is scored as its text was in the run; an empty one (EOS at once) is a response too."""
    sample = {
        "prompt_id": "p3",
        "sample_id": 5,
        "prompt": [{"role": "user", "content": "Hello"}],
        "response": "you",
        "response_tokens": [300, 2],
        "finish_reason": "eos",
        "scores": {"reward_model": 0.25},
        "reward": 0.25,
        "discarded": None,
        "selected": True,
    }
    found = score([sample, {**sample, "sample_id": 6, "response": "", "response_tokens": [2]}])
    assert [row["score"] for row in found] == [
        close(expected(chatml("Hello", "you"))),
        close(expected(chatml("Hello", ""))),
    ]
    assert [(row["prompt_id"], row["sample_id"]) for row in found] == [("p3", 5), ("p3", 6)]
    assert (found[0]["finish_reason"], found[0]["reward"], found[0]["selected"]) == ("eos", 0.25, True)
    assert "scores" not in found[0]  # nested columns stay behind


def test_kinds_may_be_mixed_and_keep_their_order(
    score: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": "x"},
        {"prompt": "nobody answered"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2},
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "chosen": "same", "rejected": "same"},
    ]
    found = score(rows)
    assert [row["source"].rsplit(":")[-1] for row in found] == ["1", "3", "4"]
    assert found[1]["margin"] == 2.0
    assert found[1]["chosen_score"] == close(found[2]["score"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_pairs"] == 1
    assert "1 x prompt without a response" in captured.err
    assert "1 x identical chosen and rejected replies" in captured.err


def test_column_named_like_an_output_does_not_replace_it(score: Callable[..., list[dict[str, Any]]]) -> None:
    (found,) = score([{"prompt": "a", "response": "b", "score": 99, "source": "web"}])
    assert found["score"] != 99
    assert found["source"].endswith("rows.jsonl:1")


def test_scores_do_not_depend_on_the_batch(score: Callable[..., list[dict[str, Any]]]) -> None:
    rows = [{"prompt": SENTENCES[i % 4][: 5 + 3 * i], "response": SENTENCES[-i % 4][: 60 - 4 * i]} for i in range(11)]
    single = score(rows, "--reward_batch_size", 1)
    batched = score(rows, "--reward_batch_size", 8)
    assert [row["score"] for row in batched] == [close(row["score"]) for row in single]
    assert [row["response"] for row in batched] == [row["response"] for row in rows]


def test_long_texts_lose_the_start_of_their_prompt_and_are_counted(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = build_adapter(tiny_model, tmp_path / "adapter", reward=True)  # reads 200 tokens
    rows = [{"prompt": f"{start} " + "bread " * 300, "response": "thank you"} for start in ("Hello", "Bake")]
    rows.append({"prompt": "short", "response": "thank you"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset_path", f"{tmp_path}/rows.jsonl", "--reward_model_or_path", adapter]
    main(parse(ScoreConfig, flags, prog="raft score"))
    captured = capsys.readouterr()
    first, second, third = (json.loads(line)["score"] for line in captured.out.splitlines())
    assert first == pytest.approx(second, abs=1e-5)
    assert abs(first - third) > 1e-3
    assert "2 of 3 texts have more than 200 tokens" in captured.err


# ---------------------------------------------------------------- where it goes


def test_stdout_without_a_file(
    tiny_reward_model: str, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset_path", preferences, "--reward_model_or_path", tiny_reward_model, "--num_rows", "5"]
    main(parse(ScoreConfig, flags, prog="raft score"))
    to_stdout = capsys.readouterr().out.splitlines()
    target = tmp_path / "new" / "scores.jsonl"
    main(parse(ScoreConfig, [*flags, "--output_path", str(target)], prog="raft score"))
    captured = capsys.readouterr()
    assert to_stdout == [*target.read_text().splitlines(), captured.out.strip()]
    assert len(to_stdout) == 6
    assert f"wrote 5 rows to {target}" in captured.err


def test_file_stays_whole_when_scoring_fails(
    score: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"prompt": "a", "response": "b"}
    score([row])
    before = (tmp_path / "scores.jsonl").read_bytes()
    monkeypatch.setattr("raft.tools.score.write_jsonl", lambda path, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score([row, row])
    assert (tmp_path / "scores.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scores.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_file", "{rows}"], "is the data to score"),
        (["--output_file", "{directory}"], "is a directory"),
        (["--reward_model_or_path", "{model}"], "not a sequence classifier"),
        (["--reward_model_or_path", "{directory}/nothing"], "--reward_model_or_path|there is no directory"),
        (["--reward_batch_size", "0"], "--reward_batch_size: found 0"),
    ],
)
def test_refusals(flags: list[str], message: str, tiny_model: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    filled = [flag.format(rows=rows, directory=tmp_path, model=tiny_model) for flag in flags]
    with pytest.raises(UserError, match=message):
        main(parse(ScoreConfig, ["--dataset_path", str(rows), *filled], prog="raft score"))
    assert rows.read_text() == '{"prompt": "a", "response": "b"}\n'


def test_only_prompts(score: Callable[..., list[dict[str, Any]]]) -> None:
    with pytest.raises(UserError, match="only prompts without a response"):
        score([{"prompt": "a"}])


def test_dataset_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert raft_main(["score"]) == 2
    assert "--dataset_path is required" in capsys.readouterr().err


# ---------------------------------------------------------------- real data, real processes


@pytest.mark.skipif(not HH_RLHF.is_file(), reason=f"needs {HH_RLHF.name} of the HH-RLHF data beside the repository")
def test_real_pairs(tiny_reward_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset_path", HH_RLHF, "--num_rows", 8, "--reward_model_or_path", tiny_reward_model]
    flags += ["--output_file", tmp_path / "scores.jsonl"]
    main(parse(ScoreConfig, [str(flag) for flag in flags], prog="raft score"))
    rows = read_jsonl(tmp_path / "scores.jsonl")
    accuracy = sum(row["chosen_score"] > row["rejected_score"] for row in rows) / 8
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


def test_two_processes_write_what_one_does(
    tiny_reward_model: str, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset_path", preferences, "--reward_model_or_path", tiny_reward_model]
    flags += ["--reward_batch_size", "5", "--reward_dtype", "fp32", "--output_file"]
    main(parse(ScoreConfig, [*flags, f"{tmp_path}/one.jsonl"], prog="raft score"))
    one = capsys.readouterr()
    two = run_raft("score", *flags, tmp_path / "two.jsonl", num_processes=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert len(read_jsonl(tmp_path / "two.jsonl")) == 24
    assert one.out == two.stdout
    assert json.loads(two.stdout)["num_pairs"] == 24
    assert "scoring" in one.err  # the progress bar
    assert two.stderr.count("wrote 24 rows") == 1
