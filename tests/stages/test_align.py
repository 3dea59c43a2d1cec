"""RAFT end to end on tiny models.

Most runs happen in this process (starting Python and DeepSpeed takes longer than a tiny run); the first one, the
killed one and those on two ranks are processes of their own.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raft import cli
from raft.functional.diversity import diversity_report
from raft.functional.statistics import paired_bootstrap_interval
from raft.rewards.reward_model import RewardModel
from raft.run_directory import read_jsonl
from tests.conftest import build_model, run_raft, run_ranks
from tests.processes import run_forked
from tests.reports.page_runs import data_of
from tests.stages.runs import files

Flags = list[str]
Align = Callable[..., Path]
Rows = list[dict[str, Any]]
PLOTS = ("reward", "ranking", "kl", "diversity", "length", "entropy", "loss", "time")
ROW_KEYS = [
    "prompt_id", "sample_id", "prompt", "response", "response_tokens", "finish_reason", "scores", "reward",
    "discarded", "selected",
]  # fmt: skip


@pytest.fixture(scope="module")
def flags(talkative_model: str, tiny_reward_model: str, prompts: str) -> Flags:
    """b=4, k=3, two iterations of two steps, on 9 prompts; 3 are held out."""
    return command_line(
        model_name_or_path=talkative_model,
        reward_model_or_path=tiny_reward_model,
        dataset_path=prompts,
        eval_dataset_path="none",
        validation_split_percentage=25,
        num_raft_iteration=2,
        raft_batch_size=4,
        num_samples_per_prompt=3,
        output_min_length=0,
        output_max_length=12,
        inference_batch_size_per_device=5,
        per_device_train_batch_size=2,
        num_train_epochs=1,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        eval_every_n_iterations=1,
        dtype="fp32",
        reward_dtype="fp32",
    )


def command_line(**settings: object) -> Flags:
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def align(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Align:
    """Run ``raft align`` in this process, later flags overriding earlier ones; gives the run directory."""
    # Drawing takes longer than all else here, and has its own tests.
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)

    def run(name: str = "run", *more: str, code: int = 0, **settings: object) -> Path:
        arguments = overriding(flags, [*command_line(**settings), *more])
        assert cli.main(["align", *arguments, "--output_dir", str(tmp_path / name)]) == code
        return tmp_path / name

    return run


def overriding(flags: Flags, changes: Flags) -> Flags:
    """Flags without those that are given again."""
    changed = {flag for flag in changes if flag.startswith("--")}
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [text for flag, value in pairs if flag not in changed for text in (flag, value)] + changes


@pytest.fixture(scope="module")
def first_run(flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The flags above as a user would run them; the run directory and what was printed."""
    directory = tmp_path_factory.mktemp("align") / "run"
    done = run_raft("align", *flags, "--output_dir", directory)
    return directory, done.stdout + done.stderr


def samples_of(run: Path, iteration: int) -> Rows:
    return read_jsonl(run / f"iterations/{iteration:04d}/samples.jsonl")


def selected_of(run: Path, iteration: int) -> Rows:
    return read_jsonl(run / f"iterations/{iteration:04d}/selected.jsonl")


def metrics_of(run: Path, *, times: bool = False) -> Rows:
    return [
        {key: value for key, value in row.items() if times or (key != "time" and not key.startswith("seconds/"))}
        for row in read_jsonl(run / "metrics.jsonl")
    ]


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def assert_same_run(one: Path, other: Path, *, directories: Iterable[str] = ("final",)) -> None:
    """Samples, held-out responses, metrics but for times, and exported weights, all bit for bit."""
    for pattern in ("iterations/*/*.jsonl", "held_out/*.jsonl"):
        files = sorted(path.relative_to(one) for path in one.glob(pattern))
        assert files == sorted(path.relative_to(other) for path in other.glob(pattern))
        for file in files:
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert metrics_of(one) == metrics_of(other)
    for directory in directories:
        assert_same_files(one / directory, other / directory)


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert any(name.endswith(".safetensors") for name in names)
    for name in names:
        if name != "README.md":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


# ------------------------------------------------------------------------------------------- what a run leaves behind


def test_the_files_of_a_run(first_run: tuple[Path, str]) -> None:
    run, output = first_run
    model = {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "before_after.md", "report.html"}
    expected |= {"tensorboard/events"}
    expected |= {f"final/{name}" for name in model}
    written = ("samples.jsonl", "selected.jsonl", "metrics.json", "drift.json")
    expected |= {f"iterations/000{i}/{name}" for i in (1, 2) for name in written}
    expected |= {f"held_out/000{i}.jsonl" for i in (0, 1, 2)}
    expected |= {f"plots/{name}.png" for name in PLOTS}
    expected |= {f"checkpoints/000002/{name}" for name in ("manifest.json", "state.json", "random-0.pt", "latest")}
    expected |= {"checkpoints/000002/engine/mp_rank_00_model_states.pt"}
    if summary_of(run)["best_iteration"]:
        expected |= {f"best/{name}" for name in model}
    assert files(run) == expected
    assert "held-out prompts: 3" in output
    assert "Traceback" not in output
    assert "Warning" not in output


def test_the_page_is_of_this_run(first_run: tuple[Path, str]) -> None:
    run, output = first_run
    assert f"the page of this run: {run}/report.html" in output
    data = data_of((run / "report.html").read_text(encoding="utf-8"))
    assert [(one["name"], one["command"], one["finished"]) for one in data["runs"]] == [(run.name, "align", True)]
    recorded = [row["response"] for iteration in (1, 2) for row in samples_of(run, iteration)]
    assert sorted(data["texts"][0]["samples"]["columns"]["response"]) == sorted(recorded)
    reward = next(one for one in data["runs"][0]["results"] if one["label"] == "Held-out reward")
    assert reward["after"] == pytest.approx(summary_of(run)["held_out_reward"]["final"])


def test_every_row_is_complete_and_consistent(first_run: tuple[Path, str], flags: Flags, prompts: str) -> None:
    run, _ = first_run
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    by_id = {row["prompt_id"]: row["prompt"] for row in read_jsonl(Path(prompts))}
    drawn: list[str] = []
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        assert [row["sample_id"] for row in rows] == list(range(12))
        for row in rows:
            assert list(row) == ROW_KEYS
            assert row["prompt"] == [{"role": "user", "content": by_id[row["prompt_id"]]}]
            tokens = row["response_tokens"]
            assert 1 <= len(tokens) <= 12
            assert row["response"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
            assert row["finish_reason"] == ("eos" if tokens[-1] == tokenizer.eos_token_id else "length")
            assert tokenizer.eos_token_id not in tokens[:-1]
            assert row["reward"] == row["scores"]["reward_model"]
            assert list(row["scores"]) == ["reward_model"]
            assert row["discarded"] is None
            assert isinstance(row["selected"], bool)
        # The samples of a prompt stand together, and no two prompts of an iteration are the same.
        ids = [row["prompt_id"] for row in rows]
        assert all(ids[3 * i] == ids[3 * i + j] for i in range(4) for j in range(3))
        drawn += ids[::3]
        assert selected_of(run, iteration) == [row for row in rows if row["selected"]]
    # The last quarter is held out; of the rest, 8 draws without return.
    assert len(set(drawn)) == 8
    assert set(drawn) <= {f"p{i}" for i in range(9)}
    for iteration in (0, 1, 2):
        rows = read_jsonl(run / f"held_out/{iteration:04d}.jsonl")
        assert [row["prompt_id"] for row in rows] == ["p9", "p10", "p11"]
        assert all(list(row) == ROW_KEYS and row["selected"] is None for row in rows)


def test_scores_are_those_of_plain_transformers(first_run: tuple[Path, str], tiny_reward_model: str) -> None:
    run, _ = first_run
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    for row in samples_of(run, 2) + read_jsonl(run / "held_out/0001.jsonl"):
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt + row["response"] + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            score = float(model(input_ids=ids).logits[0, 0])
        assert row["scores"]["reward_model"] == pytest.approx(score, abs=1e-4)


def test_summary_is_what_the_files_say(first_run: tuple[Path, str]) -> None:
    run, output = first_run
    summary = summary_of(run)
    rows = [read_jsonl(run / f"held_out/{iteration:04d}.jsonl") for iteration in (0, 1, 2)]
    first, last = rows[0], rows[2]
    rewards = [np.array([row["reward"] for row in part]) for part in rows]
    low, high = paired_bootstrap_interval(rewards[2] - rewards[0])
    diversity = [diversity_report([row["response"] for row in part]) for part in (first, last)]

    def change(value: Callable[[Rows], float]) -> Any:
        return pytest.approx({"initial": value(first), "final": value(last)})

    assert list(summary) == [
        "num_iterations", "best_iteration", "stopped", "held_out_reward", "distinct_1", "distinct_2", "length",
        "eos_share", "drift", "seconds",
    ]  # fmt: skip
    assert summary["num_iterations"] == 2
    assert summary["stopped"] is None
    assert summary["best_iteration"] == int(np.argmax([part.mean() for part in rewards]))
    assert summary["held_out_reward"] == {
        "initial": pytest.approx(rewards[0].mean()),
        "final": pytest.approx(rewards[2].mean()),
        "difference": pytest.approx((rewards[2] - rewards[0]).mean()),
        "ci95": pytest.approx([low, high]),
        "num_prompts": 3,
    }
    for n in (1, 2):
        initial, final = (report[f"distinct-{n}"] for report in diversity)
        assert summary[f"distinct_{n}"] == pytest.approx({"initial": initial, "final": final}, nan_ok=True)
    assert summary["length"] == change(lambda part: np.mean([len(row["response_tokens"]) for row in part]))  # type: ignore[arg-type,return-value]
    assert summary["eos_share"] == change(lambda part: np.mean([row["finish_reason"] == "eos" for row in part]))  # type: ignore[arg-type,return-value]
    assert summary["drift"] == {"iterations": [], "alarms": []}  # six responses an iteration prove nothing
    seconds = summary["seconds"]
    assert set(seconds) >= {"loading", "sampling", "scoring", "training", "evaluation", "total"}
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"), abs=0.11)
    assert f"change in reward {summary['held_out_reward']['difference']:+.3f}" in output


def test_metrics_are_what_the_rows_say(first_run: tuple[Path, str]) -> None:
    run, _ = first_run
    log = metrics_of(run, times=True)
    assert [row["iteration"] for row in log if "held_out/reward_mean" in row] == [0, 1, 2]
    assert [row["step"] for row in log if "step" in row] == [1, 2, 3, 4]
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        (found,) = [row for row in log if row.get("iteration") == iteration and "reward/all_mean" in row]
        rewards = [row["reward"] for row in rows]
        assert found["reward/all_mean"] == pytest.approx(np.mean(rewards))
        assert found["reward/all_std"] == pytest.approx(np.std(rewards))
        assert found["reward/selected_mean"] == pytest.approx(np.mean([r["reward"] for r in rows if r["selected"]]))
        assert found["samples/num"] == 12
        assert found["samples/num_selected"] == 4
        assert found["samples/num_discarded"] == found["samples/num_prompts_skipped"] == 0
        assert found["response/eos_share"] == np.mean([row["finish_reason"] == "eos" for row in rows])
        diversity = diversity_report([row["response"] for row in rows])
        assert found["diversity/distinct-2"] == pytest.approx(diversity["distinct-2"])
        drift = json.loads((run / f"iterations/{iteration:04d}/drift.json").read_text())
        assert (drift["iteration"], drift["num_responses"]) == (iteration, 12)
        assert drift["num_responses_start"] == 12 + 3  # the first iteration's and the held-out ones before training
        assert found["drift/num_alarms"] == len(drift["alarms"])
        written = json.loads((run / f"iterations/{iteration:04d}/metrics.json").read_text())
        assert written == {key: value for key, value in found.items() if key not in ("time", "iteration")}
        assert {"seconds/sampling", "seconds/scoring", "seconds/training"} <= set(found)
        assert ("seconds/checkpoints" in found) == ("seconds/plots" in found) == (iteration > 1)  # of the one before
    evaluated = [row["seconds/evaluation"] for row in log if "held_out/reward_mean" in row]
    assert sum(evaluated) == pytest.approx(summary_of(run)["seconds"]["evaluation"], abs=0.051)
    # The loss of an iteration is that of its tokens, whatever steps they came in.
    steps = [row for row in log if "step" in row]
    total, weight = (sum(s["train/weight"] * s.get(key, 1.0) for s in steps[:2]) for key in ("train/loss", "none"))
    assert weight == sum(len(row["response_tokens"]) for row in selected_of(run, 1))
    (metrics,) = [row for row in log if row.get("iteration") == 1 and "train/loss" in row]
    assert metrics["train/loss"] == pytest.approx(total / weight)


def test_the_final_model_learned_what_was_selected(first_run: tuple[Path, str], talkative_model: str) -> None:
    run, _ = first_run
    tokenizer = AutoTokenizer.from_pretrained(run / "final")

    def loss(directory: str | Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        return -sum(logprob_of(model, tokenizer, row) for row in selected_of(run, 1) + selected_of(run, 2))

    assert loss(run / "final") < 0.9 * loss(talkative_model)


def logprob_of(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Log-probability of a row's response by transformers alone, unpadded."""
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    prompt, response = tokenizer(text).input_ids, row["response_tokens"]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0].double(), -1)
    return sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


def test_raft_compare_gives_the_held_out_responses(
    first_run: tuple[Path, str], talkative_model: str, prompts: str, tmp_path: Path
) -> None:
    run, _ = first_run
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in read_jsonl(Path(prompts))[9:]))
    flags = {"dataset_path": held_out, "max_new_tokens": 12, "dtype": "fp32", "output_file": tmp_path / "found.json"}
    flags["inference_batch_size_per_device"] = 5
    assert cli.main(["compare", talkative_model, str(run), *command_line(**flags)]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["prompts"]
    for name, iteration in (("talkative", 0), (run.name, 2)):
        texts = [row["response"] for row in read_jsonl(run / f"held_out/{iteration:04d}.jsonl")]
        assert [row["responses"][name]["text"] for row in found] == texts


# ------------------------------------------------------------------------------------------- the same run again


def test_two_runs_with_one_seed_agree(first_run: tuple[Path, str], align: Align) -> None:
    assert_same_run(first_run[0], align(), directories=["final", "best"] if (first_run[0] / "best").exists() else [])


def test_another_seed_gives_other_samples(first_run: tuple[Path, str], align: Align) -> None:
    found, base = samples_of(align(seed=1), 1), samples_of(first_run[0], 1)
    assert [row["prompt_id"] for row in found] != [row["prompt_id"] for row in base]
    assert [row["response_tokens"] for row in found] != [row["response_tokens"] for row in base]


KILLED = """
import os, signal, sys
from raft import cli
from raft.stages.align import Alignment

record = Alignment.record
def record_or_die(self, *arguments):
    if self.progress.iteration == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    record(self, *arguments)
Alignment.record = record_or_die
cli.main(sys.argv[1:])
"""


def test_resume_after_a_kill_equals_no_interruption(align: Align, flags: Flags, tmp_path: Path) -> None:
    """Killed in iteration 3, after it trained and wrote its samples, before its metrics and checkpoint."""
    changes = {"num_raft_iteration": 4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "lora_dropout": 0.1}
    whole = align("whole", "--use_lora", **changes)
    killed = tmp_path / "killed"
    arguments = [*overriding(flags, command_line(**changes)), "--use_lora", "--output_dir", str(killed)]
    done = run_forked(("-c", KILLED), "align", *arguments)
    assert done.returncode == -9, done.stderr[-3000:]
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["000002"]
    assert samples_of(killed, 3) == samples_of(whole, 3)
    assert max(row.get("step", 0) for row in metrics_of(killed)) == 6
    assert not (killed / "final").exists()
    assert align("killed", "--use_lora", "--resume", **changes) == killed
    assert_same_run(whole, killed)
    assert {k: v for k, v in summary_of(whole).items() if k != "seconds"} == {
        k: v for k, v in summary_of(killed).items() if k != "seconds"
    }


# ------------------------------------------------------------------------------------------- selection


def best_of(rows: Rows, groups: Iterable[list[int]], count: int) -> set[int]:
    """Of every group the ``count`` samples that fewer than ``count`` others beat: by counting, without a sort."""

    def beats(other: int, one: int) -> bool:
        r, s = rows[other]["reward"], rows[one]["reward"]
        return r is not None and (r > s or (r == s and other < one))

    return {
        one
        for group in groups
        for one in group
        if rows[one]["reward"] is not None and sum(beats(other, one) for other in group if other != one) < count
    }


def assert_selected(run: Path, iteration: int, expected: set[int]) -> None:
    assert {row["sample_id"] for row in samples_of(run, iteration) if row["selected"]} == expected
    assert [row["sample_id"] for row in selected_of(run, iteration)] == sorted(expected)


def coarse(score: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """Scores rounded to whole numbers: most samples tie."""
    return lambda *args, **kwargs: [float(round(value)) for value in score(*args, **kwargs)]


@pytest.mark.parametrize("ties", [False, True])
def test_local_keeps_the_best_of_every_prompt(
    first_run: tuple[Path, str], align: Align, monkeypatch: pytest.MonkeyPatch, ties: bool
) -> None:
    if ties:
        monkeypatch.setattr(RewardModel, "score", coarse(RewardModel.score))
    run = align() if ties else first_run[0]
    num_ties = 0
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)]
        assert_selected(run, iteration, best_of(rows, groups, 1))
        best = [max(rows[i]["reward"] for i in group) for group in groups]
        num_ties += sum(sum(rows[i]["reward"] == b for i in g) > 1 for g, b in zip(groups, best, strict=True))
    assert num_ties > 0 or not ties


@pytest.mark.parametrize("ties", [False, True])
def test_top_keeps_the_best_of_all(align: Align, monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    if ties:
        monkeypatch.setattr(RewardModel, "score", coarse(RewardModel.score))
    run = align(collection_strategy="top")
    drawn: list[str] = []
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        drawn += [row["prompt_id"] for row in rows]
        expected = best_of(rows, [list(range(12))], 4)
        assert len(expected) == 4
        assert_selected(run, iteration, expected)
    # 24 draws of 9 prompts: two whole epochs and 6 of a third. Nothing is dropped at their ends.
    assert sorted(drawn[:9]) == sorted(drawn[9:18]) == [f"p{i}" for i in range(9)]
    assert len(set(drawn[18:])) == 6


def test_a_prompt_that_is_drawn_twice_counts_as_two(align: Align) -> None:
    run = align(num_raft_iteration=1, raft_batch_size=12, num_samples_per_prompt=2)
    rows = samples_of(run, 1)
    assert max(Counter(row["prompt_id"] for row in rows).values()) == 4
    assert_selected(run, 1, best_of(rows, [[2 * i, 2 * i + 1] for i in range(12)], 1))


def test_random_ignores_the_rewards(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    run = align("one", collection_strategy="random", num_raft_iteration=1)
    score = RewardModel.score
    monkeypatch.setattr(RewardModel, "score", lambda *a, **k: [-value for value in score(*a, **k)])
    other = align("two", collection_strategy="random", num_raft_iteration=1)
    chosen = [row["sample_id"] for row in selected_of(run, 1)]
    assert chosen == [row["sample_id"] for row in selected_of(other, 1)]
    assert [i // 3 for i in chosen] == [0, 1, 2, 3]


def test_samples_are_written_before_anything_is_selected(
    align: Align, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("selection breaks")

    monkeypatch.setattr("raft.stages.align.select", select)
    with pytest.raises(RuntimeError, match="selection breaks"):
        align()
    rows = samples_of(tmp_path / "run", 1)
    assert len(rows) == 12
    assert all(list(row) == ROW_KEYS and row["reward"] is not None and row["selected"] is None for row in rows)
    assert not (tmp_path / "run/iterations/0001/selected.jsonl").exists()


def test_discarded_samples_are_recorded_and_never_selected(align: Align) -> None:
    rules = ["--discard_regex", "e", "--discard_regex", "^$", "--discard_unfinished"]
    run = align("run", *rules, raft_batch_size=9, output_max_length=5)
    reasons: Counter[str | None] = Counter()
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        for row in rows:
            expected = None
            if "e" in row["response"]:
                expected = "regex e"
            elif not row["response"]:
                expected = "regex ^$"
            elif row["finish_reason"] == "length":
                expected = "no EOS"
            assert row["discarded"] == expected
            assert (row["reward"] is None) == (expected is not None)
            assert row["scores"]["reward_model"] is not None, "the score is kept"
        reasons.update(row["discarded"] for row in rows)
        groups = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(9)]
        chosen = best_of(rows, groups, 1)
        assert_selected(run, iteration, chosen)
        metrics = json.loads((run / f"iterations/{iteration:04d}/metrics.json").read_text())
        assert metrics["samples/num_discarded"] == sum(row["reward"] is None for row in rows)
        assert metrics["samples/num_prompts_skipped"] == 9 - len(chosen)
        assert metrics["reward/all_mean"] == pytest.approx(np.mean([r["reward"] for r in rows if not r["discarded"]]))
        for row in read_jsonl(run / f"held_out/{iteration:04d}.jsonl"):
            assert row["discarded"] is None, "the held-out reward is of all responses"
    assert len(reasons) == 4, "all reasons came up"
    assert any(
        json.loads((run / f"iterations/000{i}/metrics.json").read_text())["samples/num_prompts_skipped"] for i in (1, 2)
    )


def test_a_run_goes_on_when_everything_is_discarded(
    align: Align, talkative_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = align(discard_shorter_than=1000)
    assert capsys.readouterr().out.count("no sample is left to train on") == 2
    for iteration in (1, 2):
        assert {row["discarded"] for row in samples_of(run, iteration)} == {"shorter than 1000 characters"}
        assert selected_of(run, iteration) == []
        metrics = json.loads((run / f"iterations/{iteration:04d}/metrics.json").read_text())
        assert metrics["samples/num_prompts_skipped"] == 4
        assert metrics["reward/all_mean"] is metrics["train/loss"] is None
    summary = summary_of(run)
    assert summary["held_out_reward"]["difference"] == 0
    before, after = (AutoModelForCausalLM.from_pretrained(d).state_dict() for d in (talkative_model, run / "final"))
    assert all(torch.equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------------------- training


def test_the_tokens_trained_on_are_the_tokens_sampled(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    from raft.engine import build

    batches: list[Any] = []

    def collate(rows: Any) -> Any:
        batches.append(real_collate(rows))
        return batches[-1]

    real_collate = build.collate_joined
    monkeypatch.setattr(build, "collate_joined", collate)
    run = align(num_raft_iteration=1, num_train_epochs=2)
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    rows = selected_of(run, 1)
    seen: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for batch in batches:
        rows_of_batch = (tensor[0].split(list(batch.documents)) for tensor in (batch.input_ids, batch.labels))
        for ids, labels in zip(*rows_of_batch, strict=True):
            trained = labels != -100
            assert torch.equal(ids[trained], labels[trained])
            seen[tuple(ids[~trained].tolist()), tuple(labels[trained].tolist())] += 1
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        expected[tuple(tokenizer(text).input_ids), tuple(row["response_tokens"])] += 2  # epochs
    assert seen == expected
    assert any(row["response_tokens"][-1] == tokenizer.eos_token_id for row in rows)
    assert sum(batch.weight for batch in batches) == 2 * sum(len(row["response_tokens"]) for row in rows)


@pytest.mark.parametrize("extra", [[], ["--use_lora"], ["--dtype", "bf16", "--gradient_accumulation_steps", "2"]])
def test_k_1_equals_sft_on_the_same_text_bit_for_bit(
    align: Align, flags: Flags, tmp_path: Path, extra: list[str]
) -> None:
    # 13 responses in steps of 2 or 4: also a step with a remainder. Some responses are EOS alone.
    settings = {"num_raft_iteration": 1, "num_train_epochs": 2, "lr_scheduler_type": "linear", "warmup_ratio": 0.3}
    run = align("run", *extra, raft_batch_size=13, num_samples_per_prompt=1, seed=0, **settings)
    rows = samples_of(run, 1)
    assert len(rows) == 13
    assert all(row["selected"] for row in rows)
    assert any(row["response"] == "" for row in rows)
    taken = ("model_name_or_path", "per_device_train_batch_size", "learning_rate", "dtype")
    pairs = zip(flags[::2], flags[1::2], strict=True)
    same = [text for flag, value in pairs if flag[2:] in taken for text in (flag, value)]
    del settings["num_raft_iteration"]
    arguments = [*overriding(same, command_line(**settings)), *extra, "--seed", "0"]
    if "--dtype" in extra:
        arguments = [*overriding(same, [*command_line(**settings), *extra]), "--seed", "0"]
    dataset = str(run / "iterations/0001/selected.jsonl")
    assert cli.main(["sft", *arguments, "--dataset_path", dataset, "--output_dir", str(tmp_path / "sft")]) == 0
    assert_same_files(run / "final", tmp_path / "sft/final")
    steps = [[row for row in metrics_of(directory) if "step" in row] for directory in (run, tmp_path / "sft")]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2 * (4 if "--gradient_accumulation_steps" in extra else 7)


def test_max_steps_ends_the_run_early(align: Align) -> None:
    # Two steps an iteration: the third is the first of iteration 2.
    run = align(max_steps=3, num_raft_iteration=5, lr_scheduler_type="linear")
    steps = [row for row in metrics_of(run) if "step" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    # The schedule spans three steps: full, two thirds, one third.
    assert [row["train/learning_rate"] for row in steps] == pytest.approx([3e-3, 2e-3, 1e-3])
    assert sorted(path.name for path in (run / "iterations").iterdir()) == ["0001", "0002"]
    assert summary_of(run)["num_iterations"] == 2
    assert (run / "held_out/0002.jsonl").exists()
    assert (run / "final/model.safetensors").exists()


def test_optimizer_and_schedule_live_through_all_iterations(align: Align) -> None:
    run = align(lr_scheduler_type="linear", warmup_ratio=0.25, num_train_epochs=2)
    rates = [row["train/learning_rate"] for row in metrics_of(run) if "step" in row]
    # Eight steps, two of them warm-up: 0, 1/2, then 6/6 down to 1/6.
    assert rates == pytest.approx([3e-3 * share for share in (0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 4), (0.6, 2)])
def test_curves_are_drawn_as_often_as_they_are_cheap(
    align: Align, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    """After each of three iterations and at the end, or after the first and at the end."""
    drawn = []

    def draw(directory: Path) -> None:
        drawn.append(directory)
        time.sleep(seconds)

    monkeypatch.setattr("raft.reports.curves.draw_align_curves", draw)
    run = align(num_raft_iteration=3, eval_every_n_iterations=0)
    assert drawn == [run] * times


def test_evaluation_every_n_iterations_and_the_best_policy(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: list[float] = []

    def metrics(samples: Any) -> dict[str, Any]:
        held_out.append(reward := [0.0, 2.0, 1.0][len(held_out)])
        return {"held_out/reward_mean": reward, "held_out/reward_ci95": [0.0, 0.0]} | {
            f"held_out/{name}": 0.0 for name in ("length_mean", "eos_share", "distinct-1", "distinct-2")
        }

    monkeypatch.setattr("raft.stages.align.held_out_metrics", metrics)
    run = align(num_raft_iteration=5, eval_every_n_iterations=3, save_every_n_iterations=2, save_total_limit=2)
    assert sorted(path.name for path in (run / "held_out").iterdir()) == ["0000.jsonl", "0003.jsonl", "0005.jsonl"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000002", "000004"]
    assert summary_of(run)["best_iteration"] == 3
    assert "iteration 3 of 5" in (run / "best/README.md").read_text()
    best, final = ((run / name / "model.safetensors").read_bytes() for name in ("best", "final"))
    assert best != final
    # With a constant rate, three iterations alone end where best/ was taken.
    monkeypatch.undo()
    shorter = align("shorter", num_raft_iteration=3)
    assert (shorter / "final/model.safetensors").read_bytes() == best


def test_limits_of_the_best_policy_and_an_early_end(
    align: Align, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards, distinct = iter([0.0, 1.0, 3.0, 0.9, 0.8, 0.7, 0.6]), iter([0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5])

    def metrics(samples: Any) -> dict[str, Any]:
        found = {"reward_mean": next(rewards), "reward_ci95": [0.0, 0.0], "distinct-2": next(distinct)}
        return {f"held_out/{key}": value for key, value in {"length_mean": 9.0, "eos_share": 1.0, **found}.items()}

    monkeypatch.setattr("raft.stages.align.held_out_metrics", metrics)
    monkeypatch.setattr("raft.stages.align.summarize", lambda run, progress: progress)
    monkeypatch.setattr("raft.stages.align.write_before_after", lambda run, summary: None)
    settings = {"num_raft_iteration": 6, "best_min_distinct_2": 0.8, "early_stopping": "level"}
    run = align(**settings)
    reason = "the held-out reward has levelled off: no gain in 3 evaluations since iteration 1 (1.000)"
    refused = "distinct-2 is 0.100, below 0.8 of the start's 0.500"
    summary = summary_of(run)
    assert (summary["iteration"], summary["best_iteration"]) == (4, 1)
    assert summary["stopped"] == {"rule": "level", "reason": reason}
    assert "iteration 1 of 6" in (run / "best/README.md").read_text()
    assert "iteration 4 of 6" in (run / "final/README.md").read_text()
    rows = {row["iteration"]: row for row in metrics_of(run) if "stopping/best_iteration" in row}
    assert [row["stopping/best_iteration"] for row in rows.values()] == [0, 1, 1, 1, 1]
    assert [i for i, row in rows.items() if "stopping/refused" in row] == [2]
    assert [i for i, row in rows.items() if "stopping/level" in row] == [4]
    shown = capsys.readouterr().out
    assert f"iteration 2: not kept in best/: {refused}\n" in shown
    assert f"iteration 4: {reason}; the run ends here\n" in shown
    # Resumed as it is there is nothing left to do; with other flags the run goes on, and knows its history.
    align("run", "--resume", **settings)
    assert summary_of(run)["stopped"] == {"rule": "level", "reason": reason}
    assert not (run / "iterations/0005").exists()
    capsys.readouterr()
    align("run", "--resume", **settings | {"early_stopping": "falling"})
    assert (summary_of(run)["iteration"], summary_of(run)["stopped"]) == (6, None)
    assert (
        "no gain in 5 evaluations since iteration 1 (1.000); --early_stopping level would end"
        in capsys.readouterr().out
    )


# ------------------------------------------------------------------------------------------- the KL-ranked variant


@pytest.mark.parametrize("lora", [False, True])
def test_kl_ranking_subtracts_the_log_ratio(align: Align, talkative_model: str, lora: bool) -> None:
    """The reference is a copy of the policy, or the policy with its adapters off; here both are recomputed alone."""
    extra = ["--use_lora", "--learning_rate", "3e-2"] if lora else []
    settings = {"kl_coefficient": 0.25}
    run = align("run", *extra, **settings)
    shorter = align("shorter", *extra, num_raft_iteration=1, **settings)  # its end is the policy of iteration 2
    tokenizer = AutoTokenizer.from_pretrained(talkative_model)
    reference = AutoModelForCausalLM.from_pretrained(talkative_model).eval()
    policy: Any = AutoModelForCausalLM.from_pretrained(talkative_model if lora else shorter / "final").eval()
    if lora:
        import peft

        policy = peft.PeftModel.from_pretrained(policy, shorter / "final").eval()
    for iteration in (1, 2):
        rows = samples_of(run, iteration)
        for row in rows:
            expected = 0.0
            if iteration == 2:
                expected = logprob_of(policy, tokenizer, row) - logprob_of(reference, tokenizer, row)
            assert row["scores"]["log_ratio"] == pytest.approx(expected, abs=1e-3)
            assert row["reward"] == row["scores"]["reward_model"] - 0.25 * row["scores"]["log_ratio"]
        assert_selected(run, iteration, best_of(rows, [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)], 1))
        metrics = json.loads((run / f"iterations/{iteration:04d}/metrics.json").read_text())
        assert metrics["kl/log_ratio_mean"] == pytest.approx(np.mean([row["scores"]["log_ratio"] for row in rows]))
    assert max(abs(row["scores"]["log_ratio"]) for row in samples_of(run, 2)) > 0.5
    # The penalty is for ranking: held-out rewards are the reward model's own words.
    for row in read_jsonl(run / "held_out/0002.jsonl"):
        assert row["reward"] == row["scores"]["reward_model"]
        assert "log_ratio" not in row["scores"]


# ------------------------------------------------------------------------------------------- models of all kinds


def test_the_reward_model_has_a_tokenizer_and_template_of_its_own(align: Align, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "reward"
    build_model(path, classifier=True, seed=7)
    raw = Tokenizer(models.BPE())  # bytes alone, without merges: other ids for the same text
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"</s>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    for old in path.glob("*.jinja"):
        old.unlink()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.save_pretrained(path)
    run = align(reward_model_or_path=path, num_raft_iteration=1)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for row in samples_of(run, 1):
        # No chat template: the human_assistant markup, and EOS as this tokenizer has it.
        text = f"###Human: {row['prompt'][0]['content']}\n###Assistant: {row['response']}"
        ids = torch.tensor([[*tokenizer(text).input_ids, 0]])
        with torch.no_grad():
            score = float(model.score(model.model(ids).last_hidden_state[0, -1])[0])
        assert row["scores"]["reward_model"] == pytest.approx(score, abs=1e-4)


def test_stop_strings_and_lengths_reach_the_sampler(align: Align) -> None:
    run = align("run", "--stop", "e", "--stop", "th", num_raft_iteration=1, output_min_length=3, output_max_length=9)
    rows = samples_of(run, 1)
    assert {row["finish_reason"] for row in rows} >= {"stop", "eos"}
    for row in rows:
        assert "e" not in row["response"]
        assert "th" not in row["response"]
        assert len(row["response_tokens"]) <= 9
        if row["finish_reason"] == "eos":
            assert len(row["response_tokens"]) > 3


def test_bf16_lora_and_gradient_checkpointing(align: Align) -> None:
    extra = ["--use_lora", "--gradient_checkpointing", "--dtype", "bf16", "--reward_dtype", "bf16"]
    run = align("run", *extra)
    assert (run / "final/adapter_model.safetensors").exists()
    assert not (run / "final/model.safetensors").exists()
    assert_same_run(run, align("again", *extra))


RANKS = """
import json, sys
import raft.reports.curves
from raft import cli, distributed

raft.reports.curves.draw_align_curves = lambda directory: None
take = distributed.take_chunks
for name, arguments in json.loads(sys.argv[1]).items():
    # A counter counts once in a run; here are several runs in one process group.
    distributed.take_chunks = lambda counter, total, name=name: take(f"{name}/{counter}", total)
    assert cli.main(["align", *arguments]) == 0
distributed.shutdown()
"""


def test_zero_stages_ranks_and_lora(align: Align, flags: Flags, tmp_path: Path, talkative_model: str) -> None:
    """Every combination draws the same samples and ends at the same weights."""
    cases = {
        f"{kind}-{stage}": [*(["--use_lora"] if kind == "lora" else []), *zero]
        for kind in ("full", "lora")
        for stage, zero in {
            0: [],
            2: ["--deepspeed", "scripts/deepspeed/zero2.json"],
            3: ["--deepspeed", "scripts/deepspeed/zero3.json"],
        }.items()
    }
    settings = {"kl_coefficient": 0.1}
    arguments = {
        name: [
            *overriding(flags, command_line(per_device_train_batch_size=1, **settings)),
            *extra,
            "--output_dir",
            str(tmp_path / f"2-{name}"),
        ]
        for name, extra in cases.items()
    }
    bases = {kind: align(f"1-{kind}-0", *cases[f"{kind}-0"], **settings) for kind in ("full", "lora")}
    rewards = sorted(row["reward"] for row in samples_of(bases["full"], 1))
    # Two filters that leave one rank nothing to train on, and both.
    for name, floor in {"one-row": sum(rewards[-2:]) / 2, "no-row": rewards[-1] + 1e6}.items():
        changes = command_line(discard_below=floor, num_raft_iteration=1, output_dir=tmp_path / name)
        arguments[name] = overriding(arguments["full-3"], changes)
    run_ranks(RANKS, 2, json.dumps(arguments))
    for name, num_rows in (("one-row", 1), ("no-row", 0)):
        assert len(read_jsonl(tmp_path / name / "iterations/0001/selected.jsonl")) == num_rows
        steps = [row["step"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "step" in row]
        assert (len(steps) > 0) == (num_rows > 0)
        assert (tmp_path / name / "final/model.safetensors").exists()
    for kind, base in bases.items():
        others = [align(f"1-{kind}-{stage}", *cases[f"{kind}-{stage}"], **settings) for stage in (2, 3)]
        others += [tmp_path / f"2-{kind}-{stage}" for stage in (0, 2, 3)]
        weights = final_weights(base, talkative_model)
        start = AutoModelForCausalLM.from_pretrained(talkative_model).state_dict()
        assert max(float((weights[name] - start[name]).abs().max()) for name in weights) > 1e-3
        for other in others:
            assert without_scores(samples_of(base, 1)) == without_scores(samples_of(other, 1)), other.name
            # After training, weights differ in the last digits; a number at the very edge of two tokens might fall
            # to the other side.
            pairs = list(zip(samples_of(base, 2), samples_of(other, 2), strict=True))
            assert sum(a["response_tokens"] != b["response_tokens"] for a, b in pairs) <= 1
            found = final_weights(other, talkative_model)
            assert found.keys() == weights.keys()
            for name, weight in weights.items():
                torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=0, msg=f"{other.name}: {name}")
            assert [row["prompt_id"] for row in read_jsonl(other / "held_out/0002.jsonl")] == ["p9", "p10", "p11"]


def without_scores(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key not in ("scores", "reward")} for row in rows]


def final_weights(run: Path, base: str) -> dict[str, torch.Tensor]:
    """Weights of ``final/``, an adapter merged into its base by peft alone."""
    if not (run / "final/adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(run / "final").state_dict()
    import peft

    model: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "final")
    weights: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return weights


# ------------------------------------------------------------------------------------------- data and mistakes


def test_held_out_prompts_from_a_file(align: Align, tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    rows = [{"prompt": "Hello there", "prompt_id": "same"}, {"prompt": "dog", "prompt_id": "same"}, {"prompt": "a cat"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = align(eval_dataset_path=path, num_eval_prompts=2, num_raft_iteration=3)
    assert len(read_jsonl(run / "held_out/0001.jsonl")) == 2
    assert summary_of(run)["held_out_reward"]["num_prompts"] == 2, "equal ids are still two prompts"
    drawn = [row["prompt_id"] for iteration in range(1, 4) for row in samples_of(run, iteration)[::3]]
    assert len(set(drawn)) == 12, "nothing of dataset_path is held out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_reward_percentage": 12.5, "num_samples_per_prompt": 8}, "--top_reward_percentage: found 12.5"),
        ({"top_reward_percentage": 0.3}, "--top_reward_percentage: found 0.3, allowed is 1/k"),
        ({"top_reward_percentage": 0.25, "num_samples_per_prompt": 3}, "--num_samples_per_prompt is 3; give one"),
        ({"num_samples_per_prompt": 0}, "--num_samples_per_prompt: found 0"),
        ({"temperature": 0}, "--temperature: found 0"),
        ({"output_min_length": 99}, "--output_min_length: found 99"),
        ({"validation_split_percentage": 0}, "--validation_split_percentage: found 0"),
        ({"collection_strategy": "best"}, "--collection_strategy"),
        ({"discard_regex": "(a"}, "--discard_regex: '(a'"),
        ({"reward_model_or_path": "output_models/nowhere"}, "--reward_model_or_path: there is no directory"),
        ({"model_name_or_path": "output_models/nowhere"}, "--model_name_or_path: there is no directory"),
        ({"dataset_path": "output_models/nowhere.jsonl"}, "--dataset_path: output_models/nowhere.jsonl does not exist"),
        ({"eval_dataset_path": "nowhere.jsonl"}, "--eval_dataset_path: nowhere.jsonl does not exist"),
        ({"prompt_max_length": 3}, "--dataset_path: no prompt has at most --prompt_max_length 3"),
        ({"lr_scheduler_type": "zigzag"}, "--lr_scheduler_type"),
        ({"deepspeed": "nowhere.json"}, "--deepspeed: there is no file nowhere.json"),
        ({"lora_target_modules": "nowhere", "use_lora": "true"}, "--lora_target_modules"),
        ({"raft_batchsize": 4}, "raft_batch_size"),
        ({"dtype": "fp8"}, '--dtype: found "fp8", expected one of auto, bf16, fp32'),
        ({"output_max_length": 512}, "--prompt_max_length and --output_max_length: a sequence may have 5"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(
    align: Align, capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    if "top_reward_percentage" in changes and "num_samples_per_prompt" not in changes:
        changes = changes | {"num_samples_per_prompt": "none"}
    run = align("failed", code=2, **changes)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("raft")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error
    assert not run.exists()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("rule:lenth", "unknown rule lenth"),
        ("no.py:f", "there is no file no.py."),
        ("no.where", "there is no directory no.where; if a Python function is meant, give no:where."),
        ("./nowhere", "there is no directory ./nowhere."),
    ],
)
def test_a_reward_that_is_not_there_is_told_before_the_policy_is_loaded(
    reward: str, message: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = command_line(reward=reward, model_name_or_path="nowhere", dataset_path=prompts, output_dir=tmp_path / "run")
    assert cli.main(["align", *flags]) == 2
    assert f"error: --reward {reward}: {message}" in capsys.readouterr().err


def test_a_missing_reward_model_as_a_user_sees_it(flags: Flags, tmp_path: Path) -> None:
    arguments = overriding(flags, command_line(reward_model_or_path="nowhere", output_dir=tmp_path / "run"))
    done = run_raft("align", *arguments, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("raft align: error: --reward_model_or_path: there is no directory nowhere")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten_by_accident_nor_by_a_start_that_fails(
    align: Align, capsys: pytest.CaptureFixture[str]
) -> None:
    run = align(num_raft_iteration=1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    align(code=2)
    assert "--output_dir" in capsys.readouterr().err
    align("run", "--overwrite_output_dir", code=2, model_name_or_path="nowhere")
    align("run", "--resume", code=2, model_name_or_path="nowhere")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    align("run", "--overwrite_output_dir", num_raft_iteration=1, seed=1)
    assert samples_of(run, 1) != [
        json.loads(line) for line in before[run / "iterations/0001/samples.jsonl"].splitlines()
    ]
    assert align("elsewhere", "--resume", code=2).exists() is False
    assert "there is no run in" in capsys.readouterr().err
