from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raft.functional.diversity import diversity_report
from raft.functional.statistics import paired_bootstrap_interval
from raft.reports.alignment import (
    describe,
    held_out_metrics,
    iteration_metrics,
    iteration_text,
    kept_of,
    summarize,
    write_before_after,
)
from raft.rollout.prompts import Prompt
from raft.rollout.samples import Sample
from raft.run_directory import RunDirectory, write_jsonl


def sample(
    number: int, reward: float | None, response: str = "a b", *, draw: int | None = None, **changes: Any
) -> Sample:
    values: dict[str, Any] = {
        "sample_id": number,
        "draw": number if draw is None else draw,
        "prompt": Prompt(f"p{number}", ({"role": "user", "content": f"question {number}"},), [1], {}),
        "response": response,
        "response_tokens": [1] * len(response.split()),
        "finish_reason": "eos",
        "reward": reward,
        "discarded": None if reward is not None else "too short",
    }
    return Sample(**{**values, **changes})


def test_iteration_metrics_by_hand() -> None:
    samples = [
        sample(0, 1.0, "a b c", draw=0, selected=True),
        sample(1, -2.0, "a b", draw=0, selected=False, finish_reason="length"),
        sample(2, None, "d", draw=1, selected=False),
        sample(3, None, "d", draw=1, selected=False),
        sample(4, 4.0, "b c", draw=2, selected=True, finish_reason="stop"),
    ]
    found = iteration_metrics(samples)
    diversity = {key: found.pop(key) for key in list(found) if key.startswith("diversity/")}
    assert found == pytest.approx(
        {
            "reward/all_mean": 1.0,  # of 1, -2 and 4
            "reward/all_std": math.sqrt(6.0),  # squares of 0, 3 and 3, over three
            "reward/selected_mean": 2.5,
            "samples/num": 5,
            "samples/num_discarded": 2,
            "samples/num_selected": 2,
            "samples/num_prompts_skipped": 1,
            "ranking/random_mean": (-0.5 + 4.0) / 2,
            "ranking/best_of_n_mean": 2.5,
            "ranking/responses_differ_share": 1 / 2,  # of the two prompts with several responses
            "ranking/rewards_differ_share": 1.0,  # of the one with several rewards
            "ranking/within_prompt_std": math.sqrt(4.5),  # 1.5^2 + 1.5^2, over 3 - 2
            # Of means: 2 * 1.5^2 + 3^2 = 13.5 over 1; n0 = 3 - 5 / 3; (13.5 - 4.5) / (4 / 3) = 6.75.
            "ranking/between_prompt_std": math.sqrt(6.75),
            "ranking/length_correlation": 0.0,  # lengths 3, 2, 2 from their mean times rewards 0, -3, 3 from theirs
            "ranking/length_correlation_within_prompt": 1.0,
            "response/length_mean": 9 / 5,
            "response/length_std": math.sqrt(2.8 / 5),  # 3 2 1 1 2 from 1.8
            "response/eos_share": 3 / 5,
            "response/selected_length_mean": 2.5,
            "response/selected_length_std": 0.5,
            "response/selected_eos_share": 1 / 2,
        }
    )
    expected = {"distinct-1": 4 / 9, "distinct-2": 2 / 4, "selected_distinct-1": 3 / 5, "selected_distinct-2": 2 / 3}
    assert {name: diversity[f"diversity/{name}"] for name in expected} == pytest.approx(expected)
    report = diversity_report([one.response for one in samples])
    chosen = diversity_report([samples[0].response, samples[4].response])
    every = {f"diversity/{name}": value for name, value in report.items()}
    every |= {f"diversity/selected_{name}": value for name, value in chosen.items()}
    assert diversity == pytest.approx(every, nan_ok=True)


def test_ranking_metrics_of_top_selection() -> None:
    """One response a prompt: nothing within prompts to choose from or to compare."""
    found = iteration_metrics([sample(i, float(i), "a " * (4 - i), selected=i == 3) for i in range(4)])
    assert found["ranking/random_mean"] == found["ranking/best_of_n_mean"] == found["reward/all_mean"] == 1.5
    assert found["reward/selected_mean"] == 3.0
    assert found["ranking/length_correlation"] == pytest.approx(-1.0)
    for name in (
        "responses_differ_share",
        "rewards_differ_share",
        "within_prompt_std",
        "between_prompt_std",
        "length_correlation_within_prompt",
    ):
        assert math.isnan(found[f"ranking/{name}"]), name


def test_iteration_metrics_when_everything_is_discarded() -> None:
    found = iteration_metrics([sample(0, None, selected=False), sample(1, None, selected=False)])
    assert math.isnan(found["reward/all_mean"])
    assert math.isnan(found["reward/all_std"])
    assert math.isnan(found["reward/selected_mean"])
    assert found["samples/num_selected"] == 0
    assert found["samples/num_prompts_skipped"] == 2
    assert "diversity/selected_distinct-2" not in found


def test_iteration_metrics_with_log_ratios() -> None:
    samples = [sample(i, 0.0, scores={"reward_model": 1.0, "log_ratio": ratio}) for i, ratio in enumerate([0.5, 2.5])]
    assert iteration_metrics(samples)["kl/log_ratio_mean"] == 1.5
    assert "kl/log_ratio_mean" not in iteration_metrics([sample(0, 0.0)])


def test_held_out_metrics_by_hand() -> None:
    rewards = [0.5, -1.0, 2.0, 0.25]
    samples = [sample(i, reward, "a " * (i + 1)) for i, reward in enumerate(rewards)]
    samples[3].finish_reason = "length"
    found = held_out_metrics(samples)
    assert found["held_out/reward_mean"] == pytest.approx(1.75 / 4)
    assert found["held_out/reward_ci95"] == list(paired_bootstrap_interval(rewards))
    assert found["held_out/length_mean"] == (1 + 2 + 3 + 4) / 4
    assert found["held_out/eos_share"] == 3 / 4
    assert found["held_out/distinct-1"] == 1 / 10
    assert found["held_out/distinct-2"] == 1 / 6


def test_held_out_metrics_without_a_finite_reward() -> None:
    found = held_out_metrics([sample(0, None), sample(1, None)])
    assert math.isnan(found["held_out/reward_mean"])
    assert all(math.isnan(bound) for bound in found["held_out/reward_ci95"])


def write_run(run: Path, before: list[float | None], after: list[float | None]) -> dict[str, Any]:
    """A run of 3 iterations with these held-out rewards; what the run remembers."""
    metrics = []
    for iteration, rewards in ((0, before), (2, [9.0] * len(before)), (3, after)):
        samples = [sample(i, reward, f"text {iteration} " * (i + 1)) for i, reward in enumerate(rewards)]
        write_jsonl(run / f"held_out/{iteration:04d}.jsonl", (one.as_json() for one in samples))
        metrics += [{"iteration": iteration, **held_out_metrics(samples)}, {"iteration": iteration, "train/loss": 1.0}]
    write_jsonl(run / "metrics.jsonl", metrics)
    return {"iteration": 3, "best_iteration": 2, "seconds": {"sampling": 1.26, "training": 0.51}}


def test_the_summary_compares_the_end_with_the_start(tmp_path: Path) -> None:
    before: list[float | None] = [0.0, 1.0, -1.0, 0.5]
    after: list[float | None] = [1.0, 1.5, 0.0, 0.5]
    found = summarize(tmp_path, write_run(tmp_path, before, after))
    assert found["num_iterations"] == 3
    assert found["best_iteration"] == 2
    differences = [1.0, 0.5, 1.0, 0.0]  # prompt by prompt
    assert found["held_out_reward"] == {
        "initial": 0.125,
        "final": 0.75,
        "difference": 0.625,
        "ci95": list(paired_bootstrap_interval(differences)),
        "num_prompts": 4,
    }
    # Paired: much narrower than the spread of the rewards themselves.
    low, high = found["held_out_reward"]["ci95"]
    assert 0 < low < 0.625 < high < 1.01
    assert found["length"] == {"initial": 5.0, "final": 5.0}  # 2, 4, 6 and 8 words
    assert found["eos_share"] == {"initial": 1.0, "final": 1.0}
    assert found["distinct_1"] == {"initial": 0.1, "final": 0.1}
    assert found["seconds"] == {"sampling": 1.3, "training": 0.5, "total": 1.8}


def test_pairs_without_a_reward_are_left_out(tmp_path: Path) -> None:
    found = summarize(tmp_path, write_run(tmp_path, [0.0, None, 1.0, 2.0], [1.0, 5.0, None, 2.5]))
    assert found["held_out_reward"]["num_prompts"] == 2
    assert found["held_out_reward"]["difference"] == 0.75  # of 1 and 0.5


def test_a_run_without_any_pair_is_summarized_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summarize(tmp_path, write_run(tmp_path, [None, 1.0], [1.0, None]))
    assert found["held_out_reward"]["num_prompts"] == 0
    assert math.isnan(found["held_out_reward"]["difference"])
    write_before_after(tmp_path, found)
    assert "0 prompts" in (tmp_path / "before_after.md").read_text()
    assert "held-out prompts: 0" in capsys.readouterr().out


def test_metrics_that_have_no_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a finite reward the mean is no number, null in the log, and the run ends all the same."""
    for iteration in (0, 1):
        samples = [sample(i, None, "word") for i in range(2)]
        write_jsonl(tmp_path / f"held_out/{iteration:04d}.jsonl", (one.as_json() for one in samples))
    write_jsonl(tmp_path / "metrics.jsonl", [{"iteration": i, **held_out_metrics(samples)} for i in (0, 1)])
    summary = summarize(tmp_path, {"iteration": 1, "best_iteration": 0, "seconds": {}})
    assert summary["distinct_1"] == {"initial": 0.5, "final": 0.5}
    assert summary["distinct_2"] == {"initial": 0.0, "final": 0.0}
    assert math.isnan(summary["held_out_reward"]["final"])
    write_before_after(tmp_path, summary)
    assert "nan" in capsys.readouterr().out


def test_texts_before_and_after_by_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gains = [0.1, 2.0, -0.5, 0.3, 1.0]
    summary = summarize(tmp_path, write_run(tmp_path, [0.0] * 5, list(gains)))
    write_before_after(tmp_path, summary)
    text = (tmp_path / "before_after.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## +2.00 · p1", "## +1.00 · p4", "## +0.30 · p3", "## +0.10 · p0", "## -0.50 · p2"]
    assert "    user: question 3" in text
    assert "    text 0 text 0 text 0 text 0" in text
    assert "    text 3 text 3 text 3 text 3" in text
    printed = capsys.readouterr().out
    # The 90th, 50th and 10th percentile of five: the second best (index 0.1 * 4 = 0), the middle, and the fourth.
    shown = [line for line in printed.splitlines() if line.startswith("user: question")]
    assert shown == ["user: question 1", "user: question 3", "user: question 0"]
    assert "change in reward +0.580" in printed


def test_prompts_of_one_id_stay_apart(tmp_path: Path) -> None:
    for iteration, rewards in ((0, [0.0, 0.0]), (3, [1.0, 2.0])):
        samples = [sample(i, reward) for i, reward in enumerate(rewards)]
        rows = [one.as_json() | {"prompt_id": "same"} for one in samples]
        write_jsonl(tmp_path / f"held_out/{iteration:04d}.jsonl", rows)
    metrics = [{"iteration": i, **held_out_metrics([sample(0, 0.0), sample(1, 0.0)])} for i in (0, 3)]
    write_jsonl(tmp_path / "metrics.jsonl", metrics)
    summary = summarize(tmp_path, {"iteration": 3, "best_iteration": 3, "seconds": {}})
    assert summary["held_out_reward"]["num_prompts"] == 2
    assert summary["held_out_reward"]["difference"] == 1.5
    write_before_after(tmp_path, summary)
    assert (tmp_path / "before_after.md").read_text().count("· same") == 2


def test_the_table_for_the_screen() -> None:
    two = {"initial": 0.1, "final": 0.25}
    summary = {
        "held_out_reward": {"initial": -1.25, "final": 0.5, "difference": 1.75, "ci95": [1.5, 2.0], "num_prompts": 64},
        "distinct_1": two,
        "distinct_2": two,
        "length": {"initial": 40.0, "final": 52.5},
        "eos_share": {"initial": 0.75, "final": 1.0},
        "drift": {"iterations": [], "alarms": []},
        "seconds": {"sampling": 61.4, "total": 61.4},
    }
    lines = describe(summary).splitlines()
    assert lines[0].split() == ["held-out", "prompts:", "64", "before", "after"]
    assert [line.split()[-2:] for line in lines[1:6]] == [
        ["-1.250", "0.500"], ["0.100", "0.250"], ["0.100", "0.250"], ["40.000", "52.500"], ["0.750", "1.000"],
    ]  # fmt: skip
    assert lines[6] == "change in reward +1.750, 95% interval +1.500 to +2.000"
    assert lines[7] == "seconds: sampling 61, total 61"
    assert len({len(line) for line in lines[:6]}) == 1
    alarm = {"kind": "phrase", "feature": "i'm always", "share_start": 0.009, "share_now": 0.43, "first_iteration": 5}
    short = {"kind": "shape", "feature": "empty", "share_start": 0.0, "share_now": 0.1, "first_iteration": 6}
    drift = {"iterations": [3, 5, 6], "alarms": [alarm, short]}
    assert describe(summary | {"drift": drift}).splitlines()[7:] == [
        "drift alarms since iteration 3; in 6: phrase 'i'm always' 1% -> 43%, empty 0% -> 10% of the responses",
        "seconds: sampling 61, total 61",
    ]


def test_the_summary_has_the_last_alarms_of_the_drift_watch(tmp_path: Path) -> None:
    progress = write_run(tmp_path, [0.0, 1.0], [1.0, 2.0])
    assert summarize(tmp_path, progress)["drift"] == {"iterations": [], "alarms": []}  # the watch was off
    alarm = {"kind": "phrase", "feature": "sorry", "share_start": 0.0, "share_now": 0.5, "first_iteration": 2}
    for iteration, alarms in ((1, []), (2, [alarm | {"p": 0.01, "also": []}]), (3, []), (4, [alarm, alarm])):
        RunDirectory(tmp_path).write_json(f"iterations/{iteration:04d}/drift.json", {"alarms": alarms})
    found = summarize(tmp_path, progress)["drift"]  # of three iterations; the fourth is of before a resume
    assert found == {"iterations": [2], "alarms": [alarm]}


def test_the_mean_reward_says_of_which_samples_it_is() -> None:
    assert kept_of({"samples/num": 8, "samples/num_discarded": 0}) == "all samples"
    assert kept_of({"samples/num": 8, "samples/num_discarded": 5}) == "the 3 of 8 samples that were not discarded"


def test_rewards_that_leave_nothing_to_choose_by_are_told() -> None:
    """Two responses to each of two prompts; where one of them has no reward, it is not known."""
    cases: list[tuple[list[float | None], bool]] = [
        ([1.0, 1.0, 2.0, 2.0], True),
        ([1.0, 1.5, 2.0, 2.0], False),
        ([1.0, None, None, 2.0], False),
    ]
    for rewards, warned in cases:
        samples = [sample(i, reward, draw=i // 2) for i, reward in enumerate(rewards)]
        text = iteration_text(3, iteration_metrics(samples))
        assert text.startswith("iteration 3: reward of ")
        assert ("\nwarning: for no prompt do the rewards of its responses differ" in text) == warned
