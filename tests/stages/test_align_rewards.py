"""`raft align` with rewards of other kinds than one model: functions, rules, servers, several at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft import cli
from raft.run_directory import read_jsonl
from tests.conftest import SENTENCES, run_raft
from tests.rewards import sources
from tests.rewards.sources import by_length, server

HERE = "tests.rewards.sources"
Align = Callable[..., Path]


@pytest.fixture(scope="module")
def settings(talkative_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """b=4, k=3, two iterations of two steps, on 9 prompts with a column of answers; 3 are held out."""
    words = " ".join(SENTENCES).split()
    rows = [
        {"prompt_id": f"p{i}", "prompt": " ".join(words[3 * i : 3 * i + 2 + i % 6]), "answer": words[i]}
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": talkative_model, "dataset_path": path, "eval_dataset_path": "none",
        "validation_split_percentage": 25, "num_raft_iteration": 2, "raft_batch_size": 4, "num_samples_per_prompt": 3,
        "output_max_length": 12, "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 3e-3,
        "eval_every_n_iterations": 1, "dtype": "fp32", "reward_dtype": "fp32", "reward_batch_size": 5,
    }  # fmt: skip


@pytest.fixture
def align(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Align:
    """Run ``raft align`` in this process; gives the run directory."""
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)

    def run(*more: str, code: int = 0, name: str = "run", **changes: Any) -> Path:
        values = settings | changes | {"output_dir": tmp_path / name}
        flags = [text for key, value in values.items() for text in (f"--{key}", str(value))]
        assert cli.main(["align", *flags, *more]) == code
        return tmp_path / name

    return run


def samples_of(run: Path, iteration: int) -> list[dict[str, Any]]:
    return read_jsonl(run / f"iterations/{iteration:04d}/samples.jsonl")


def metrics_of(run: Path, iteration: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"iterations/{iteration:04d}/metrics.json").read_text())
    return found


def test_a_function_gets_the_rows_and_what_the_policy_saw(align: Align, settings: dict[str, Any]) -> None:
    sources.CALLS.clear()
    run = align("--reward", f"{HERE}:length")
    answers = {row["prompt_id"]: row["answer"] for row in read_jsonl(settings["dataset_path"])}
    rows = [row for i in (0, 1, 2) for row in read_jsonl(run / f"held_out/{i:04d}.jsonl")]
    rows += [row for i in (1, 2) for row in samples_of(run, i)]
    assert all(row["scores"] == {"length": len(row["response"])} for row in rows)
    assert all(row["reward"] == len(row["response"]) for row in rows)
    given: dict[str, list[Any]] = {key: [x for call in sources.CALLS for x in call[key]] for key in sources.CALLS[0]}
    assert len(given["responses"]) == 3 * 3 + 2 * 12
    assert set(given["prompt_tails"]) == {"<|im_end|>\n<|im_start|>assistant\n"}
    assert [answers[prompt_id] for prompt_id in given["prompt_id"]] == given["answer"]
    seen = {(row["prompt_id"], row["response"], row["finish_reason"], tuple(row["response_tokens"])) for row in rows}
    columns = (given[key] for key in ("prompt_id", "responses", "finish_reasons", "response_tokens"))
    assert {(a, b, c, tuple(d)) for a, b, c, d in zip(*columns, strict=True)} == seen
    for iteration in (1, 2):
        scores = [row["scores"]["length"] for row in samples_of(run, iteration)]
        metrics = metrics_of(run, iteration)
        assert metrics["reward/length_mean"] == pytest.approx(np.mean(scores))
        assert metrics["reward/length_std"] == pytest.approx(np.std(scores))
        held_out = read_jsonl(run / f"held_out/{iteration:04d}.jsonl")
        (logged,) = [
            row for row in read_jsonl(run / "metrics.jsonl")
            if row.get("iteration") == iteration and "held_out/reward_mean" in row
        ]  # fmt: skip
        assert logged["held_out_reward/length_mean"] == pytest.approx(logged["held_out/reward_mean"])
        tokens = [len(row["response_tokens"]) for row in held_out]
        assert logged["held_out/length_mean"] == pytest.approx(np.mean(tokens)), "not hidden by a source's name"


def test_several_sources_weighted_and_normalised(align: Align, tiny_reward_model: str) -> None:
    run = align(
        "--reward", f"liked={tiny_reward_model}", f"{HERE}:length", "rule:eos",
        "--reward_weights", "2,1,0.5", "--reward_normalization", "batch", "none", "batch",
    )  # fmt: skip

    def rewards(rows: list[dict[str, Any]], yardstick: list[dict[str, Any]]) -> Any:
        total = np.array([row["scores"]["length"] for row in rows], dtype=float)
        for name, weight in (("liked", 2.0), ("eos", 0.5)):
            scale = np.array([row["scores"][name] for row in yardstick])
            scores = np.array([row["scores"][name] for row in rows])
            total += weight * (scores - scale.mean()) / (scale.std() or 1.0)
        return pytest.approx(list(total))

    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        assert [row["reward"] for row in rows] == rewards(rows, rows)
        assert {row["scores"]["eos"] for row in rows} <= {0.0, -1.0}
    # Held-out rewards are measured by the first evaluation, else their mean would always be 0.
    held_out = [read_jsonl(run / f"held_out/{i:04d}.jsonl") for i in (0, 1, 2)]
    for rows in held_out:
        assert [row["reward"] for row in rows] == rewards(rows, held_out[0])


def test_the_yardstick_of_held_out_rewards_survives_a_resume(align: Align, tiny_reward_model: str) -> None:
    flags = ["--reward", tiny_reward_model, "--reward_normalization", "batch"]
    whole = align(*flags, name="whole")
    stopped = align(*flags, "--max_steps", "2", name="stopped")
    config = (stopped / "config.yaml").read_text()
    assert "max_steps: 2" in config
    again = align(*flags, "--resume", name="stopped")
    assert read_jsonl(again / "held_out/0002.jsonl")[0]["scores"].keys() == {"tiny-reward"}
    first = np.array([row["scores"]["tiny-reward"] for row in read_jsonl(again / "held_out/0000.jsonl")])
    for run in (whole, again):
        rows = read_jsonl(run / "held_out/0002.jsonl")
        expected = [(row["scores"]["tiny-reward"] - first.mean()) / first.std() for row in rows]
        assert [row["reward"] for row in rows] == pytest.approx(expected)


def test_what_has_no_score_is_left_out_counted_and_told(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    run = align("--reward", f"{HERE}:choosy")
    out = capsys.readouterr().out
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        for row in rows:
            expected = None
            if "w" in row["response"]:
                expected = "choosy raised ValueError"
            elif "v" in row["response"]:
                expected = "choosy returned None"
            elif not row["response"]:
                expected = "choosy returned nan"
            assert row["discarded"] == expected
            assert row["scores"]["choosy"] == (None if expected else len(row["response"]))
            assert not (expected and row["selected"])
        metrics = metrics_of(run, iteration)
        reasons = [row["discarded"] for row in rows if row["discarded"]]
        assert "choosy raised ValueError" in reasons, "this test needs such a response"
        for reason in set(reasons):
            assert metrics[f"reward_discarded/{reason}"] == reasons.count(reason)
        assert f"{len(reasons)} of 12 responses have no reward: " in out
        assert f"{reasons.count('choosy raised ValueError')} x choosy raised ValueError: there is a w in it" in out


def test_a_server_that_goes_away_stops_the_run_which_then_goes_on(
    align: Align, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raft.rewards.remote.FIRST_PAUSE", 0.01)
    is_down = threading.Event()
    scored: list[int] = []

    def answer(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/score":
            scored.append(number)
        return (503, b"gone") if is_down.is_set() else by_length(number, path, body)

    with server(answer) as (address, _):
        flags = ["--reward", address, "--reward_requests", "2", "--reward_retries", "1"]
        whole = align(*flags, name="whole")
        # Down in the second iteration: 1 request before training, 3 for the first iteration, 1 after it.
        scored.clear()
        answers = by_length

        def failing(number: int, path: str, body: bytes) -> tuple[int, bytes]:
            return (503, b"gone") if len(scored) > 5 else answers(number, path, body)

        monkeypatch.setattr("tests.stages.test_align_rewards.by_length", failing)
        stopped = align(*flags, name="stopped", code=2)
        error = capsys.readouterr().err
        assert "no answer to POST /score after 2 tries: status 503" in error
        assert f"Go on with --output_dir {stopped} --resume." in error
        assert "Traceback" not in error
        monkeypatch.setattr("tests.stages.test_align_rewards.by_length", answers)
        align(*flags, "--resume", name="stopped")
    for file in ("iterations/0002/samples.jsonl", "held_out/0002.jsonl"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()


def test_a_function_that_never_works_stops_the_run(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    align("--reward", f"{HERE}:broken", code=2)
    line = capsys.readouterr().err.splitlines()[-1]
    said = "no score for any of 3 responses: broken raised KeyError ('answer')."
    assert line.startswith(f"raft align: error: --reward {HERE}:broken: {said} Go on with --output_dir ")


def test_only_right_answers_and_rules_that_discard(align: Align) -> None:
    run = align("--reward", f"{HERE}:two_arguments", "--discard_below", "1", "--discard_rule", "length,min=3")
    rows = samples_of(run, 1)
    for row in rows:
        expected = None
        if len(row["response_tokens"]) < 3:
            expected = "rule length,min=3"
        elif row["finish_reason"] != "eos":
            expected = "reward below 1"
        assert row["discarded"] == expected
    assert any(row["selected"] for row in rows)
    chosen = [row for row in rows if row["selected"]]
    assert all(row["reward"] == 1.0 for row in chosen)


def test_the_least_reward_is_that_of_the_sources_not_of_the_penalty(align: Align) -> None:
    flags = ["--reward", f"{HERE}:two_arguments", "--discard_below", "1", "--kl_coefficient", "10"]
    rows = samples_of(align(*flags, num_raft_iteration=2), 2)
    right = [row for row in rows if row["scores"]["two_arguments"] == 1.0]
    assert any(row["scores"]["log_ratio"] > 0.001 for row in right), "otherwise there was no penalty"
    assert all(row["discarded"] is None for row in right)
    assert {row["discarded"] for row in rows if row not in right} <= {"reward below 1"}


def test_two_ranks_rank_by_the_same_scores(align: Align, settings: dict[str, Any], tmp_path: Path) -> None:
    more = ["--reward", f"{HERE}:choosy", "rule:repetition,n=1", "--reward_batch_size", "2"]
    one = align(*more, per_device_train_batch_size=1, num_raft_iteration=1)
    values = settings | {"per_device_train_batch_size": 1, "num_raft_iteration": 1, "output_dir": tmp_path / "two"}
    flags = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    run_raft("align", *flags, *more, num_processes=2)
    assert samples_of(one, 1) == samples_of(tmp_path / "two", 1)
