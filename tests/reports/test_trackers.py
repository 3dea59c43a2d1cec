"""Trackers: TensorBoard reads its event file back; W&B and trackio are played by modules that take notes."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raft import cli
from raft.errors import UserError
from raft.reports.trackers import open_trackers, point_of, refuse_absent
from raft.run_directory import RunDirectory, write_jsonl

RECORDS: list[dict[str, Any]] = [
    {"time": 10.0, "iteration": 0, "held_out/reward_mean": -1.0, "held_out/reward_ci95": [-1.5, None]},
    {"time": 11.0, "step": 1, "train/loss": 2.0, "train/learning_rate": 2e-5},
    {"time": 12.0, "iteration": 1, "reward/all_mean": 0.5, "train/loss": 2.0, "reward/all_std": None},
]


def scalars(run: Path) -> dict[str, list[tuple[int, float, float]]]:
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    return {
        tag: [(event.step, event.value, event.wall_time) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
    }


def test_points_of_records() -> None:
    assert [point_of(record) for record in RECORDS] == [
        ("iteration", 0, {"held_out/reward_mean": -1.0, "held_out/reward_ci95_low": -1.5}),
        ("step", 1, {"train/loss": 2.0, "train/learning_rate": 2e-5}),
        ("iteration", 1, {"reward/all_mean": 0.5}),
    ]
    assert point_of({"note": "hello"}) is None
    assert point_of({"iteration": 3, "train/loss": 1.0, "drift/words": "many"}) is None


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.trackers = open_trackers(tmp_path, ["tensorboard"], {})
    for record in RECORDS[:2]:
        run.log({key: value for key, value in record.items() if key != "time"})
    assert scalars(tmp_path)["train/loss"][0][:2] == (1, 2.0)  # while the run goes on
    run.log(RECORDS[2])
    run.close()
    found = scalars(tmp_path)
    assert {tag: [point[:2] for point in points] for tag, points in found.items()} == {
        "held_out/reward_mean": [(0, -1.0)],
        "held_out/reward_ci95_low": [(0, -1.5)],
        "train/loss": [(1, 2.0)],
        "train/learning_rate": [(1, pytest.approx(2e-5))],
        "reward/all_mean": [(1, 0.5)],
    }
    assert found["reward/all_mean"][0][2] == 12.0
    assert run.trackers == []


def test_a_resumed_run_has_each_point_once(tmp_path: Path) -> None:
    """Points after the checkpoint were cut out of metrics.jsonl; TensorBoard forgets them as well."""
    (first,) = open_trackers(tmp_path, [], {})
    for number in range(4):
        first.log({"step": number, "train/loss": 100.0})
    first.close()
    write_jsonl(tmp_path / "metrics.jsonl", RECORDS[:2])
    (second,) = open_trackers(tmp_path, [], {})
    second.log({"step": 2, "train/loss": 1.0, "time": 20.0})
    second.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 2.0, 11.0), (2, 1.0, 20.0)]


class Hosted(ModuleType):
    """Plays wandb or trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls: list[tuple[Any, ...]] = []
        self.broken = False

    def init(self, **options: Any) -> None:
        if self.broken:
            raise RuntimeError("no API key\nconfigured")
        self.calls.append(("init", options))

    def define_metric(self, pattern: str, step_metric: str) -> None:
        self.calls.append(("define", pattern, step_metric))

    def log(self, metrics: dict[str, float]) -> None:
        if self.broken:
            raise ConnectionError("gone")
        self.calls.append(("log", metrics))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.fixture
def hosted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    module = Hosted(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


@pytest.mark.parametrize("hosted", ["wandb", "trackio"], indirect=True)
def test_a_hosted_tracker_gets_every_number_with_its_axis(hosted: Hosted, tmp_path: Path) -> None:
    name, config = hosted.__name__, {"run": {"seed": 3}}
    _, tracker = open_trackers(tmp_path / "mine", [name, name, "tensorboard"], config)
    for record in RECORDS:
        tracker.log(record)
    tracker.close()
    kind, options = hosted.calls[0]
    assert kind == "init"
    assert (options["project"], options["name"], options["config"]) == ("raft", "mine", config)
    assert [call[1] for call in hosted.calls if call[0] == "log"] == [
        {"iteration": 0, "held_out/reward_mean": -1.0, "held_out/reward_ci95_low": -1.5},
        {"step": 1, "train/loss": 2.0, "train/learning_rate": 2e-5},
        {"iteration": 1, "reward/all_mean": 0.5},
    ]
    assert hosted.calls[-1] == ("finish",)
    defined = [call[1:] for call in hosted.calls if call[0] == "define"]
    wandb = [("*", "iteration"), ("train/*", "step"), ("eval/*", "step")]
    assert defined == (wandb if name == "wandb" else [])


@pytest.mark.parametrize("hosted", ["wandb"], indirect=True)
def test_a_resumed_run_keeps_its_identity(hosted: Hosted, tmp_path: Path) -> None:
    for run in ("one", "one", "two"):
        open_trackers(tmp_path / run, ["wandb"], {})
    first, again, other = [call[1]["id"] for call in hosted.calls if call[0] == "init"]
    assert first == again != other


@pytest.mark.parametrize("hosted", ["wandb", "trackio"], indirect=True)
def test_a_tracker_that_cannot_start_is_a_mistake_and_one_that_breaks_is_let_go(
    hosted: Hosted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tracker = open_trackers(tmp_path, [hosted.__name__], {})
    hosted.broken = True
    for record in RECORDS:
        tracker.log(record)
    tracker.close()
    assert capsys.readouterr().err == f"{hosted.__name__} gets no more metrics of this run: gone\n"
    with pytest.raises(UserError, match=f"--report_to {hosted.__name__}: no API key configured"):
        open_trackers(tmp_path, [hosted.__name__], {})


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("raft.reports.trackers.find_spec", lambda name: None)
    refuse_absent(["tensorboard"])
    for command in ("sft", "align", "reward"):
        arguments = ["--dataset_path", "absent.jsonl", "--report_to", "tensorboard", "trackio"]
        assert cli.main([command, *arguments]) == 2
        assert "--report_to trackio: it is not installed; `pip install trackio`" in capsys.readouterr().err
