"""The ablation of reward models: real runs on a tiny model, and what becomes of their results."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reward_model
from benchmarks.reward_model import GRID, Ablation, AblationConfig, Grid, table, write_chosen
from raft.errors import UserError

pytestmark = pytest.mark.benchmarks

RECIPE_NAME, SFT_NAME = GRID[0].name, next(setting.name for setting in GRID if setting.sft_first)


@pytest.fixture
def options(tiny_model: str, preferences: str, tmp_path: Path) -> Ablation:
    return Ablation(
        dataset_path=preferences,
        model_name_or_path=tiny_model,
        seeds=["0", "5"],
        runs_dir=str(tmp_path / "runs"),
        results_dir=str(tmp_path / "results"),
        label="here",
    )


def results(options: Ablation) -> dict[str, Any]:
    (path,) = Path(options.results_dir).iterdir()
    return json.loads(path.read_text())


def pretend(grid: Grid, *names: str) -> None:
    """Results of earlier runs, with both seeds."""
    grid.path.parent.mkdir(parents=True, exist_ok=True)
    runs = [{"setting": name, "seed": seed} for name in names for seed in (0, 5)]
    grid.path.write_text(json.dumps({"runs": runs}))


def test_quick_makes_a_run_from_the_model_and_one_after_sft(
    options: Ablation, capsys: pytest.CaptureFixture[str]
) -> None:
    options.quick = True
    reward_model.main(AblationConfig(options))
    found = results(options)
    assert [(run["setting"], run["seed"]) for run in found["runs"]] == [(RECIPE_NAME, 0), (SFT_NAME, 0)]
    for run in found["runs"]:
        assert run["num_steps"] == 1
        assert run["num_held_out_pairs"] == 3
        assert 0 <= run["accuracy"] <= 1
        assert run["seconds"] > run["training_seconds"] > 0
    first, second = found["runs"]
    assert first["loss"] != second["loss"]  # another model below
    assert [path.name for path in Path(options.runs_dir).iterdir() if path.is_dir()] == ["sft-0"]  # read and deleted
    assert f"| {RECIPE_NAME} | {first['accuracy']:.1%} |" in capsys.readouterr().out
    assert list(Grid(options).missing()) == []  # a second time there is nothing left to do


def test_sft_sees_the_chosen_responses_of_the_training_pairs_alone(preferences: str, tmp_path: Path) -> None:
    write_chosen(preferences, tmp_path / "chosen.jsonl", quick=False)
    found = [json.loads(line)["messages"] for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in Path(preferences).read_text().splitlines()]
    assert len(found) == 21  # of 24; a tenth, rounded up, is held out
    for messages, pair in zip(found, pairs, strict=False):
        assert [message["content"].strip() for message in messages] == [pair["prompt"], pair["chosen"].strip()]
        assert [message["role"] for message in messages] == ["user", "assistant"]


def test_runs_that_are_there_are_not_made_again(options: Ablation) -> None:
    assert len(list(Grid(options).missing())) == 2 * len(GRID)
    pretend(Grid(options), RECIPE_NAME)
    missing = list(Grid(options).missing())
    assert len(missing) == 2 * len(GRID) - 2
    assert [seed for _, seed in missing[:2]] == ["0", "5"]  # both seeds of a setting before the next setting
    assert missing[0][0] == missing[1][0] == GRID[1]


def test_settings_are_chosen_by_name_or_words(options: Ablation) -> None:
    options.settings = ["epochs", "r=32"]
    names = [setting.name for setting, _ in Grid(options).missing()][::2]
    assert names == ["two epochs", "LoRA r=32", "SFT first, two epochs"]
    options.settings = ["two epochs", "r=32"]  # a whole name is that row alone
    assert [setting.name for setting, _ in Grid(options).missing()][::2] == ["two epochs", "LoRA r=32"]
    options.settings = ["three epochs"]
    with pytest.raises(UserError, match="two epochs; SFT first"):
        list(Grid(options).missing())


def test_a_setting_differs_from_the_recipe_by_its_flags(options: Ablation, tmp_path: Path) -> None:
    options.per_device_train_batch_size = 4
    grid = Grid(options)
    full = next(setting for setting in GRID if setting.name == "full training, 1e-5")
    found = grid.flags(reward_model.RECIPE | full.flags, "model", "pairs", tmp_path, "5")
    flags = {flag: value for flag, value in zip(found, [*found[1:], ""], strict=True) if flag.startswith("--")}
    assert "--no_use_lora" in flags
    assert "--lora_r" not in flags
    assert (flags["--learning_rate"], flags["--seed"], flags["--max_length"]) == ("1e-05", "5", "256")
    assert (flags["--per_device_train_batch_size"], flags["--gradient_accumulation_steps"]) == ("4", "4")


def test_every_setting_is_one_that_raft_reward_takes(options: Ablation, tmp_path: Path) -> None:
    from raft.arguments import parse
    from raft.stages.reward_modeling import RewardModelingConfig

    for setting in GRID:
        flags = Grid(options).flags(reward_model.RECIPE | setting.flags, "model", "pairs", tmp_path, "0")
        config = parse(RewardModelingConfig, flags, prog="raft reward")
        groups = [vars(group) for group in vars(config).values()]
        for name, value in setting.flags.items():
            assert value is None or [group[name] for group in groups if name in group] == [value]
    assert len({setting.name for setting in GRID}) == len(GRID)


def test_time_limit_ends_a_run_that_is_under_way_and_begins_no_other(
    options: Ablation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper = Path(options.runs_dir).parent / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    options.time_limit, options.settings, options.jobs = 1.0, ["recipe", "two epochs"], 2
    begin = time.monotonic()
    assert reward_model.main(AblationConfig(options))["runs"] == []
    assert 1 <= time.monotonic() - begin < 20


def test_a_run_that_fails_does_not_stop_the_others_but_is_told(
    options: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail_with_seed_0(grid: Grid, name: str, flags: list[str], directory: Path) -> bool:
        tried.append(flags[flags.index("--seed") + 1])
        if tried[-1] == "0":
            raise RuntimeError("raft reward: no memory")
        return False

    monkeypatch.setattr(Grid, "command", fail_with_seed_0)
    options.settings = ["recipe"]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed; the first: raft reward: no memory"):
        reward_model.main(AblationConfig(options))
    assert tried == ["0", "5"]


def test_a_command_that_fails_says_what_it_printed(options: Ablation, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"there is no directory \./nowhere"):
        Grid(options).command("reward", ["--model_name_or_path", "./nowhere", "--dataset_path", "x"], tmp_path / "run")


def test_table_by_hand() -> None:
    run = {"num_trained_parameters": 2_500_000, "setting": GRID[0].name}
    runs: list[dict[str, Any]] = [
        {"setting": GRID[1].name, "num_trained_parameters": 10, "accuracy": 0.5, "training_seconds": 9.0},
        {**run, "accuracy": 0.7, "training_seconds": 10.0},
        {**run, "accuracy": 0.72, "training_seconds": 14.0},
    ]
    _, _, first, second = table(runs).splitlines()
    assert first == f"| {GRID[0].name} | 71.0% | 70.0% - 72.0% | 2 | 2.50M | 12 |"
    assert second.startswith("| two epochs | 50.0% | 50.0% - 50.0% | 1 |")
