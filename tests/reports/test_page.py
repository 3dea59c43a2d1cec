"""The page from Python's side: what is on it, what is left out, what is refused. The browser's side is in
test_page_browser.py."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from raft.errors import UserError
from raft.reports.page.charts import charts
from raft.reports.page.page import build_page, write_page
from raft.reports.page.payload import MAX_POINTS, laid_out
from raft.reports.page.records import Records, distinct_names, read_records, read_rows
from raft.reports.page.summary import comparison, facts, results
from raft.reports.page.texts import EXTREMES, MAX_CHARACTERS, Prompts, choose, clipped, columns, messages
from raft.run_directory import write_json, write_jsonl
from raft.tools.report import ReportConfig, ReportOptions, main
from tests.reports.page_runs import HOSTILE, data_of, row, write_align_run, write_config, write_drift, write_sft_run


def page_of(*runs: Path, **options: Any) -> dict[str, Any]:
    return data_of(build_page([read_records(run) for run in runs], **options))


# ---------------------------------------------------------------- which samples


def rows_of(num_prompts: int, num_samples: int, words: int = 20) -> list[dict[str, Any]]:
    return [
        row([f"prompt {i}"], f"p{i}", i * num_samples + j, f"{i} {j} " + "word " * words, float(j), j == 3)
        for i in range(num_prompts)
        for j in range(num_samples)
    ]


def test_prompts_come_whole_and_within_the_budget() -> None:
    choice = choose(rows_of(100, 4), budget=10_000)
    assert (choice.num_prompts, choice.num_samples, choice.num_selected) == (100, 400, 100)
    assert 0 < sum(group.size for group in choice.groups) <= 10_000
    assert all(len(group.rows) == 4 for group in choice.groups)
    # Every group is 4 responses of 105 or so characters, 40 for each row's numbers, and the prompt: about 600.
    assert 14 <= len(choice.groups) <= 17


def test_one_prompt_comes_however_small_the_budget() -> None:
    assert len(choose(rows_of(3, 2), budget=1).groups) == 1
    assert choose([], budget=100).groups == []


def test_the_same_prompts_are_kept_in_every_iteration() -> None:
    """Half of the prompts are drawn in each iteration; of those that both have, both keep the same."""
    first = choose(rows_of(200, 4), budget=30_000, extremes=False)
    second = choose(list(reversed(rows_of(400, 4)))[: 4 * 300], budget=60_000, extremes=False)
    kept = [{group.prompt_id for group in choice.groups} for choice in (first, second)]
    both = {f"p{i}" for i in range(100, 200)}
    assert len(kept[0] & both) > 10
    assert (kept[0] & both) <= kept[1] or (kept[1] & both) <= kept[0]


def test_the_extremes_of_an_iteration_are_kept_first() -> None:
    rows = rows_of(200, 1)
    for i, one in enumerate(rows):
        one["reward"] = float(i % 100)
    rows[7] |= {"response": "long " * 300}
    rows[9] |= {"response": ""}
    rows[11] |= {"reward": None, "discarded": "matches '#'"}
    rows[13] |= {"reward": 999.0}
    rows[15] |= {"reward": -999.0}
    # The extremes are at most 3 of five kinds; the budget has room for them and few others.
    kept = [group.prompt_id for group in choose(rows, budget=6_000).groups]
    assert {"p7", "p9", "p11", "p13", "p15"} <= set(kept[: 5 * EXTREMES])
    assert choose(rows, budget=6_000).discarded == {"matches '#'": 1}


def test_equal_prompts_share_an_entry_and_a_group() -> None:
    rows = [row(["same"], "a", 0, "one", 1.0, True), row(["same"], "a", 1, "two", 2.0, False)]
    (group,) = choose(rows, budget=1e6).groups
    prompts = Prompts()
    table = columns([(1, group), (2, group)], prompts)
    assert table["prompt"] == [0, 0, 0, 0]
    assert table["iteration"] == [1, 1, 2, 2]
    assert table["response"] == ["one", "two", "one", "two"]
    assert len(prompts.entries) == 1


def test_columns_hold_what_a_row_says() -> None:
    rows = [row(["hello", "there"], "a", 5, "one two", 0.123456, True) | {"scores": {"rm": 1.5, "odd": float("nan")}}]
    table = columns([(3, choose(rows, budget=1e6).groups[0])], Prompts())
    assert {name: column[0] for name, column in table.items()} == {
        "iteration": 3, "prompt": 0, "id": 5, "response": "one two", "omitted": 0, "reward": 0.1235,
        "scores": {"rm": 1.5, "odd": None}, "tokens": 2, "finish": "length", "discarded": None, "selected": True,
    }  # fmt: skip


def test_long_texts_lose_their_middle() -> None:
    assert clipped("a" * MAX_CHARACTERS) == ("a" * MAX_CHARACTERS, 0)
    text, omitted = clipped("a" * 3000 + "b" * 3000)
    assert omitted == 6000 - MAX_CHARACTERS
    assert text == "a" * 2000 + "\n…\n" + "b" * 2000


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([{"role": "user", "content": "hi"}], (("user", "hi"),)),
        ("plain text", (("", "plain text"),)),
        (None, (("", ""),)),
        ([{"role": "user", "content": [{"image": "x"}]}], (("user", '[{"image": "x"}]'),)),
        (["odd"], (("", "odd"),)),
    ],
)
def test_prompts_of_any_form(prompt: Any, expected: tuple[tuple[str, str], ...]) -> None:
    assert messages(prompt) == expected


# ---------------------------------------------------------------- size


def test_a_large_run_fits_and_the_page_says_what_it_lacks(tmp_path: Path) -> None:
    run = write_align_run(
        tmp_path / "run", num_iterations=4, num_prompts=100, num_samples=8, num_held_out=100, num_words=60
    )
    page = build_page([read_records(run)], max_megabytes=0.3)
    assert len(page) <= 300_000
    (texts,) = data_of(page)["texts"]
    for name, num_files, num_rows in (("samples", 4, 800), ("held_out", 5, 100)):
        tallies = texts[name]["tallies"]
        assert len(tallies) == num_files
        assert {one["samples"] for one in tallies} == {num_rows}
        assert all(0 < one["shown_samples"] < num_rows for one in tallies)
        assert sum(one["shown_samples"] for one in tallies) == len(texts[name]["columns"]["response"])
    # Most of what is allowed is used: twice the texts would not fit.
    assert len(page) > 150_000
    held_out = texts["held_out"]["columns"]
    pairs = set(zip(held_out["iteration"], held_out["prompt"], strict=True))
    kept = {prompt for _, prompt in pairs}
    assert pairs == {(iteration, prompt) for iteration in range(5) for prompt in kept}
    assert sum(sum(one["discarded"].values()) for one in texts["samples"]["tallies"]) == sum(
        bool(one["discarded"]) for path in sorted(run.glob("iterations/*/samples.jsonl")) for one in read_rows(path)
    )


def test_a_small_run_is_there_in_full(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=2, texts=HOSTILE)
    (texts,) = page_of(run)["texts"]
    shown = texts["samples"]["columns"]["response"]
    recorded = [one["response"] for path in sorted(run.glob("iterations/*/samples.jsonl")) for one in read_rows(path)]
    assert sorted(shown) == sorted(clipped(text)[0] for text in recorded)


def test_many_steps_are_averaged(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": i, "train/loss": float(i)} for i in range(1, 2 * MAX_POINTS + 1)])
    (run,) = page_of(tmp_path)["runs"]
    steps = run["steps"]
    assert steps["every"] == 2
    assert steps["places"][:2] == [2, 4]
    assert steps["values"]["train/loss"][:2] == [1.5, 3.5]
    assert len(steps["places"]) == MAX_POINTS


# ---------------------------------------------------------------- numbers


def test_results_are_the_first_and_the_last_numbers(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "metrics.jsonl",
        [
            {"iteration": 0, "held_out/reward_mean": 1.0, "held_out/distinct-2": None},
            {"iteration": 1, "train/loss": 3.0, "held_out/distinct-2": 0.5},
            {"iteration": 2, "held_out/reward_mean": 1.5, "train/loss": 2.0, "held_out/distinct-2": 0.25},
        ],
    )
    reward = {"difference": 0.5, "ci95": [0.25, 0.75], "num_prompts": 3}
    write_json(tmp_path / "summary.json", {"held_out_reward": reward})
    assert results(read_records(tmp_path)) == [
        {"key": "held_out/reward_mean", "label": "Held-out reward", "before": 1.0, "after": 1.5, "where": [0, 2],
         "axis": "iterations", **reward},
        {"key": "held_out/distinct-2", "label": "distinct-2", "before": 0.5, "after": 0.25, "where": [1, 2],
         "axis": "iterations"},
        {"key": "train/loss", "label": "Training loss", "before": 3.0, "after": 2.0, "where": [1, 2],
         "axis": "iterations"},
    ]  # fmt: skip


def test_facts_are_what_is_recorded(tmp_path: Path) -> None:
    lora = {"use_lora": True, "lora_r": 16, "learning_rate": 5e-05, "lr_scheduler_type": "linear"}
    write_config(tmp_path, {"training": lora})
    found = dict(facts(read_records(tmp_path)))
    assert found == {
        "Model": "models/tiny", "Learning rate": "5e-05, linear", "Precision": "bf16", "LoRA rank": "16", "Seed": "0",
        "Hardware": "2 CPU cores", "Versions": "raft 0.1, torch 2.13.0, transformers 5.23.0", "Commit": "0123456789ab",
    }  # fmt: skip
    write_config(tmp_path, {"training": lora | {"use_lora": False}})
    assert "LoRA rank" not in dict(facts(read_records(tmp_path)))
    default = {"reward_model_or_path": "data/reward_model"}
    for reward, shown in (([], "data/reward_model"), (["rw.py:brief", "rule:length"], "rw.py:brief, rule:length")):
        write_config(tmp_path, {"reward": default | {"reward": reward}})
        assert dict(facts(read_records(tmp_path)))["Reward"] == shown


def held_out_run(path: Path, before: dict[str, float | None], after: dict[str, float | None]) -> Records:
    for iteration, rewards in ((0, before), (2, after)):
        rows = [row([prompt], "x", i, "text", reward, None) for i, (prompt, reward) in enumerate(rewards.items())]
        write_jsonl(path / f"held_out/{iteration:04d}.jsonl", rows)
    write_config(path, {"reward": {"reward_model_or_path": "models/reward"}})
    return read_records(path)


def test_runs_are_compared_on_the_prompts_that_they_share(tmp_path: Path) -> None:
    first = held_out_run(tmp_path / "a", {"one": 1, "two": 2, "three": 3, "four": 0}, {"one": 2, "two": 2, "three": 5})
    second = held_out_run(tmp_path / "b", {"three": 1, "two": 1, "one": None}, {"three": 2, "two": 1, "one": 9})
    found = comparison([first, second])
    assert found is not None
    assert found["num_prompts"] == 2  # two and three: "one" has no reward before in b, "four" none after in a
    assert found["same_rewards"]
    assert [(one["run"], one["before"], one["after"]) for one in found["rows"]] == [(0, 2.5, 3.5), (1, 1.0, 1.5)]
    versus = found["rows"][1]["versus"][0]
    assert versus["difference"] == -2.0  # of 1 - 2 and 2 - 5
    # Of resamples of (-1, -3) a quarter are both -1, a quarter both -3.
    assert versus["ci95"] == [-3.0, -1.0]


def test_equal_prompts_are_paired_in_their_order_and_different_rewards_are_said(tmp_path: Path) -> None:
    runs = []
    for name, rewards in (("a", [1.0, 2.0]), ("b", [4.0, 8.0])):
        for iteration in (0, 1):
            rows = [row(["same"], "x", i, "text", reward, None) for i, reward in enumerate(rewards)]
            write_jsonl(tmp_path / name / f"held_out/{iteration:04d}.jsonl", rows)
        write_config(tmp_path / name, {"reward": {"reward_model_or_path": f"models/{name}"}})
        runs.append(read_records(tmp_path / name))
    found = comparison(runs)
    assert found is not None
    assert not found["same_rewards"]
    assert found["num_prompts"] == 2
    assert found["rows"][1]["versus"][0]["difference"] == 4.5


@pytest.mark.parametrize(
    ("one", "other", "first", "same"),
    [
        ({"reward": ["a", "b"]}, {"reward": ["a", "b"], "reward_weights": [1.0, 1.0]}, 1.0, True),
        ({"reward": ["a", "b"]}, {"reward": ["a", "b"], "reward_weights": [1.0, 0.5]}, 1.0, False),
        ({"reward": ["a"]}, {"reward": ["a"], "reward_normalization": ["none"]}, 2.0, True),
        ({"reward": ["a"]}, {"reward": ["a"], "reward_normalization": ["contract"]}, 1.0, False),
        ({"reward": ["a"]}, {"reward": ["a"], "reward_contract": "other.json"}, 1.0, False),
        ({"reward": ["m"]}, {"reward": [], "reward_model_or_path": "m"}, 1.0, True),
        # By batch the rewards before training set the scale.
        ({"reward_normalization": ["batch"]}, {"reward_normalization": ["batch"]}, 1.0, True),
        ({"reward_normalization": ["batch"]}, {"reward_normalization": ["batch"]}, 2.0, False),
        ({"reward_weights": 3, "reward": "odd"}, {"reward_weights": None, "reward": None}, 1.0, True),
    ],
)
def test_rewards_compare_by_sources_weights_and_normalisation(
    one: dict[str, Any], other: dict[str, Any], first: float, same: bool, tmp_path: Path
) -> None:
    runs = []
    for name, settings, before in (("a", one, 1.0), ("b", other, first)):
        held_out_run(tmp_path / name, {"x": before, "y": 0}, {"x": 2, "y": 1})
        write_config(tmp_path / name, {"reward": settings})
        runs.append(read_records(tmp_path / name))
    found = comparison(runs)
    assert found is not None
    assert found["same_rewards"] is same


def test_there_is_nothing_to_compare_with_a_run_without_texts(tmp_path: Path) -> None:
    runs = [read_records(write_sft_run(tmp_path / "sft")), read_records(write_align_run(tmp_path / "raft"))]
    assert comparison(runs) is None
    assert comparison(runs[1:]) is None


# ---------------------------------------------------------------- curves


def test_metrics_of_one_thing_share_a_chart_and_unknown_ones_get_their_own() -> None:
    found = charts(
        {
            "iterations": {
                "reward/all_mean", "reward/selected_mean", "held_out/reward_mean", "reward/judge_mean",
                "diversity/distinct-2", "diversity/selected_distinct-2", "held_out/distinct-2",
                "response/length_mean", "held_out/length_mean", "novelty/of_something", "train/loss",
                "seconds/training", "seconds/sampling", "seconds/total", "seconds/novel", "held_out/odd",
            },
            "steps": {"train/loss", "eval/loss", "train/learning_rate"},
        }
    )  # fmt: skip
    assert [(chart.title, chart.axis, [(curve.key, curve.label) for curve in chart.curves]) for chart in found] == [
        ("Mean reward", "iterations", [("reward/all_mean", "all samples"), ("reward/selected_mean", "selected"),
                                       ("held_out/reward_mean", "held-out")]),
        ("distinct-2 (different word pairs)", "iterations", [
            ("diversity/distinct-2", "all samples"), ("diversity/selected_distinct-2", "selected"),
            ("held_out/distinct-2", "held-out")]),
        ("Tokens a response", "iterations", [("response/length_mean", "all samples"),
                                             ("held_out/length_mean", "held-out")]),
        ("Loss", "steps", [("train/loss", "training"), ("eval/loss", "held-out")]),
        ("Learning rate", "steps", [("train/learning_rate", "")]),
        ("Seconds an iteration, by phase", "iterations", [
            ("seconds/sampling", "sampling"), ("seconds/training", "training"), ("seconds/novel", "novel")]),
        ("judge mean", "iterations", [("reward/judge_mean", "")]),
        ("odd", "iterations", [("held_out/odd", "held-out")]),
        ("of something", "iterations", [("novelty/of_something", "")]),
    ]  # fmt: skip
    assert [chart.first for chart in found] == [True] * 6 + [False] * 3
    assert [chart.section for chart in found[-3:]] == ["Reward", "Held-out prompts", "Novelty"]


def test_kl_is_drawn_by_iteration_and_under_the_reward() -> None:
    keys = {"kl/per_token", "held_out/kl", "reward/all_mean", "entropy/policy", "held_out/entropy",
            "ranking/within_prompt_std", "ranking/between_prompt_std"}  # fmt: skip
    found = {chart.title: chart for chart in charts({"iterations": keys})}
    path = found["Mean reward over KL to the initial policy, nats a token"]
    assert path.kind == "path"
    # There is no held-out reward to draw over the held-out KL.
    assert [(curve.across, curve.key) for curve in path.curves] == [("kl/per_token", "reward/all_mean")]
    lines = {title: [(c.key, c.label) for c in chart.curves] for title, chart in found.items() if chart.kind == "lines"}
    assert lines == {
        "Mean reward": [("reward/all_mean", "all samples")],
        "KL to the initial policy, nats a token": [("kl/per_token", "all samples"), ("held_out/kl", "held-out")],
        "Entropy of the next token, nats": [("entropy/policy", "all samples"), ("held_out/entropy", "held-out")],
        "Spread of the rewards (standard deviation)": [
            ("ranking/between_prompt_std", "between prompts"), ("ranking/within_prompt_std", "within a prompt")],
    }  # fmt: skip


def test_only_what_has_a_number_is_drawn(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"iteration": 1, "a/b": None, "a/c": True, "a/d": "x", "a/e": 1.0}])
    assert [chart["title"] for chart in page_of(tmp_path)["charts"]] == ["e"]


# ---------------------------------------------------------------- records of any age


def test_an_empty_or_foreign_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not there, expected a run directory"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run, expected a run directory \(with one of config\.yaml"):
        read_records(tmp_path)


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json", "metrics.jsonl", "summary.json", "held_out",
                                     "iterations"])  # fmt: skip
def test_any_part_of_a_run_may_be_missing(tmp_path: Path, missing: str) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=2)
    for path in sorted(run.rglob("*"), reverse=True):
        if missing in path.relative_to(run).parts:
            path.rmdir() if path.is_dir() else path.unlink()
    found = page_of(run)
    assert found["runs"][0]["finished"] is (missing != "summary.json")
    assert bool(found["texts"][0]["samples"]["tallies"]) is (missing != "iterations")
    assert bool(found["texts"][0]["held_out"]["tallies"]) is (missing != "held_out")


def test_rows_of_old_runs_lack_keys(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "iterations/0001/samples.jsonl", [{"prompt": "plain", "response": "text"}, {}])
    write_jsonl(tmp_path / "metrics.jsonl", [{"iteration": 1}])
    write_json(tmp_path / "iterations/0001/drift.json", {"alarms": "none"})
    (texts,) = page_of(tmp_path)["texts"]
    assert sorted(texts["samples"]["columns"]["response"]) == ["", "text"]
    assert texts["samples"]["columns"]["reward"] == [None, None]


def test_broken_records_are_named(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=1)
    path = run / "iterations/0001/samples.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 17: not JSON"):
        page_of(run)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 1: found list, expected a JSON object"):
        page_of(run)
    path.unlink()
    (run / "summary.json").write_text("")
    with pytest.raises(UserError, match=r"summary\.json: not JSON"):
        page_of(run)


def test_a_run_that_goes_on_has_a_page(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=2, finished=False)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 3, "reward/al')
    (run / "iterations/0003").mkdir()
    (run / "iterations/0003/samples.jsonl.part").write_text("{")
    (found,) = page_of(run)["runs"]
    assert not found["finished"]
    assert found["iterations"]["places"] == [0, 1, 2]


def test_alarms_of_every_iteration_are_on_the_page(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=3)
    (quiet,) = page_of(run)["runs"]
    assert not quiet["watched"]
    write_drift(run, 2)
    write_drift(run, 3)
    (found,) = page_of(run)["runs"]
    assert found["watched"]
    assert [one["iteration"] for one in found["alarms"]] == [2, 3]
    assert found["num_alarms"] == 1
    assert [one["feature"] for one in found["risen"]] == ["personal advice"]


def test_runs_of_one_name_are_told_apart() -> None:
    assert distinct_names(["/x/a", "/x/b"]) == ["a", "b"]
    assert distinct_names(["/x/a", "/y/a"]) == ["x/a", "y/a"]
    assert distinct_names(["/x/a", "/x/a"]) == ["a", "a (2)"]


# ---------------------------------------------------------------- the file


def test_the_file_is_one_closed_document_and_its_policy_allows_its_own_script_alone(tmp_path: Path) -> None:
    page = build_page([read_records(write_align_run(tmp_path / "<b>&run", num_iterations=1, texts=HOSTILE))])
    assert "%%" not in page.split("<style>")[0]
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "&lt;b&gt;&amp;run" in page
    assert "<b>" not in page
    assert "hacked" not in page  # texts travel packed
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    for tag in ("script", "style"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert inside
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy[1]


def test_the_command_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_align_run(tmp_path / name, num_iterations=1)) for name in ("a", "b")]
    main(ReportConfig(ReportOptions(runs=runs)))
    assert re.fullmatch(rf"{re.escape(runs[0])}/report\.html \(0\.\d\d MB\)\n", capsys.readouterr().out)
    main(ReportConfig(ReportOptions(runs=runs[1:], output_file=str(tmp_path / "new/page.html"))))
    assert [run["name"] for run in data_of((tmp_path / "a/report.html").read_text())["runs"]] == ["a", "b"]
    assert [run["name"] for run in data_of((tmp_path / "new/page.html").read_text())["runs"]] == ["b"]
    assert not (tmp_path / "b/report.html").exists()


def test_made_again_the_page_says_the_same(tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=2)
    first = data_of(write_page([run]).read_text())
    second = data_of(write_page([run]).read_text())
    assert first.pop("made")
    assert second.pop("made")
    assert first == second


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"--max_megabytes: found 0\.0, allowed is above 0"):
        ReportOptions(max_megabytes=0.0)


def test_held_out_prompts_are_the_same_at_every_evaluation_however_long_their_responses() -> None:
    short, long = (choose(rows_of(50, 1, words), budget=3_000, extremes=False) for words in (2, 40))
    assert len(long.groups) < len(short.groups)
    (texts,) = laid_out([{"held_out": {0: short, 1: long}, "samples": {}}], 1.0)["texts"]
    shown = texts["held_out"]["columns"]
    by_evaluation = [{p for p, i in zip(shown["prompt"], shown["iteration"], strict=True) if i == n} for n in (0, 1)]
    assert by_evaluation[0] == by_evaluation[1]
    assert len(by_evaluation[0]) == len(long.groups)
