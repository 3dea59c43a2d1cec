from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.errors import UserError
from raft.reports.curves import (
    Metrics,
    diversity_figure,
    draw_align_curves,
    draw_training_curves,
    loss_figure,
    read_metrics,
    reward_figure,
    spread,
    time_figure,
)
from raft.tools.plot import PlotConfig, PlotOptions, main

ALIGN_RECORDS: list[dict[str, Any]] = [
    {
        "iteration": 0, "held_out/reward_mean": -1.33, "held_out/reward_ci95": [-1.5, -1.1],
        "held_out/distinct-2": 0.6,
    },
    {"iteration": 1, "step": 1, "train/loss": 2.0, "train/learning_rate": 2e-5},
    {"iteration": 1, "step": 2, "train/loss": 1.5, "train/learning_rate": 1e-5},
    {
        "iteration": 1, "reward/all_mean": -1.3, "reward/selected_mean": -0.2, "diversity/distinct-2": 0.55,
        "diversity/selected_distinct-2": 0.65, "seconds/training": 9.0, "seconds/sampling": 12.0,
    },
    {
        "iteration": 2, "reward/all_mean": -1.0, "reward/selected_mean": 0.1, "diversity/distinct-2": 0.5,
        "diversity/selected_distinct-2": 0.6, "seconds/training": 8.0, "seconds/sampling": 11.0,
    },
    {
        "iteration": 2, "held_out/reward_mean": -0.9, "held_out/reward_ci95": [-1.1, -0.7],
        "held_out/distinct-2": 0.58, "seconds/evaluation": 4.0, "seconds/total": 23.0,
    },
]  # fmt: skip


def write_log(run_dir: Path, records: list[dict[str, Any]]) -> Path:
    run_dir.mkdir(exist_ok=True)
    path = run_dir / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def metrics_of(tmp_path: Path, records: list[dict[str, Any]]) -> Metrics:
    return read_metrics(write_log(tmp_path, records))


def lines_of(figure: Any, panel: int = 0) -> Mapping[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[panel].get_lines()
    }


def test_reward_figure_shows_the_recorded_numbers(tmp_path: Path) -> None:
    figure = reward_figure(metrics_of(tmp_path, ALIGN_RECORDS))
    assert figure is not None
    assert lines_of(figure) == {
        "all samples": ([1, 2], [-1.3, -1.0]),
        "selected": ([1, 2], [-0.2, 0.1]),
        "held-out": ([0, 2], [-1.33, -0.9]),
    }
    band, bars = figure.axes[0].collections
    assert [bar.tolist() for bar in bars.get_segments()] == [[[0, -1.5], [0, -1.1]], [[2, -1.1], [2, -0.7]]]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, -1.5), (0, -1.1), (2, -1.1), (2, -0.7)}


def test_curves_are_named_at_their_ends(tmp_path: Path) -> None:
    figure = reward_figure(metrics_of(tmp_path, ALIGN_RECORDS))
    assert figure is not None
    names = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert list(names) == ["all samples  \u22121.00", "held-out  \u22120.90", "selected  0.10"]
    assert len(set(names.values())) == 3


def test_diversity_figure_shows_the_recorded_numbers(tmp_path: Path) -> None:
    figure = diversity_figure(metrics_of(tmp_path, ALIGN_RECORDS))
    assert lines_of(figure) == {
        "all samples": ([1, 2], [0.55, 0.5]),
        "selected": ([1, 2], [0.65, 0.6]),
        "held-out": ([0, 2], [0.6, 0.58]),
    }


def test_time_figure_stacks_the_phases_in_their_order(tmp_path: Path) -> None:
    figure = time_figure(metrics_of(tmp_path, ALIGN_RECORDS))
    assert figure is not None
    bars = {
        container.get_label(): [(bar.get_y(), bar.get_height()) for bar in container]
        for container in figure.axes[0].containers
    }
    assert list(bars) == ["sampling", "training", "evaluation"]
    assert bars["sampling"] == [(0, 12), (0, 11)]
    assert bars["training"] == [(12, 9), (11, 8)]
    assert bars["evaluation"] == [(21, 0), (19, 4)]


def test_loss_figure_has_a_panel_for_what_is_recorded(tmp_path: Path) -> None:
    steps = [{"step": step, "train/loss": 3.0 / step, "train/learning_rate": 0.125 * step} for step in (1, 2, 3)]
    plain = loss_figure(metrics_of(tmp_path, steps))
    assert plain is not None
    assert [axes.get_title(loc="left") for axes in plain.axes] == ["Loss", "Learning rate"]
    assert lines_of(plain, 0) == {"train": ([1, 2, 3], [3.0, 1.5, 1.0])}
    assert lines_of(plain, 1) == {"learning rate": ([1, 2, 3], [0.125, 0.25, 0.375])}
    evaluated = [
        {"step": 0, "eval/loss": 0.7, "eval/accuracy": 0.5},
        *steps,
        {"step": 3, "eval/accuracy": 0.6},
    ]
    figure = loss_figure(metrics_of(tmp_path, evaluated))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert lines_of(figure, 0)["held-out"] == ([0], [0.7])
    assert lines_of(figure, 1) == {"held-out": ([0, 3], [0.5, 0.6])}


def test_a_long_noisy_loss_keeps_its_raw_curve_beside_the_smoothed_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1.0, 0.1, size=100).tolist()
    values[50] = math.nan
    figure = loss_figure(
        metrics_of(tmp_path, [{"step": step, "train/loss": value} for step, value in enumerate(values)])
    )
    lines = lines_of(figure)
    np.testing.assert_array_equal(lines["train"][1], values)
    smoothed = lines["_train, smoothed"][1]
    assert smoothed[30] == pytest.approx(np.mean(values[28:33]))
    assert smoothed[50] == pytest.approx(np.mean([*values[48:50], *values[51:53]]))


def test_align_pictures_are_written_and_nothing_else(tmp_path: Path) -> None:
    write_log(tmp_path, ALIGN_RECORDS)
    names = ["reward", "diversity", "loss", "time"]
    assert draw_align_curves(tmp_path) == [tmp_path / "plots" / f"{name}.png" for name in names]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {f"{name}.png" for name in names}
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_training_pictures(tmp_path: Path) -> None:
    write_log(tmp_path, [{"step": 1, "train/loss": 2.0}])
    assert draw_training_curves(tmp_path) == [tmp_path / "plots" / "loss.png"]


@pytest.mark.parametrize(
    "record",
    [
        {"iteration": 0, "held_out/reward_mean": -1.0, "held_out/reward_ci95": [-1.2, -0.8]},
        {"iteration": 0, "held_out/reward_mean": -1.0, "held_out/reward_ci95": [None, None]},
        {"iteration": 1, "reward/all_mean": 0.5, "reward/selected_mean": math.nan},
        {"iteration": 1, "seconds/sampling": 2.0, "seconds/scoring": None},
        {"iteration": 1, "diversity/distinct-2": 1.0},
        {"step": 1, "train/loss": 0.0, "train/learning_rate": 0.0},
        {"step": 0, "eval/loss": 0.7},
    ],
)
def test_a_single_point_is_enough_for_a_picture(tmp_path: Path, record: dict[str, Any]) -> None:
    write_log(tmp_path, [record])
    assert len(draw_align_curves(tmp_path)) == 1


def test_missing_values_leave_a_gap(tmp_path: Path) -> None:
    records = [{"iteration": i, "reward/all_mean": value} for i, value in enumerate([1.0, None, math.nan, 2.0])]
    lines = lines_of(reward_figure(metrics_of(tmp_path, records)))
    assert list(lines) == ["all samples"]
    np.testing.assert_array_equal(lines["all samples"][1], [1.0, math.nan, math.nan, 2.0])


def test_no_data_no_picture(tmp_path: Path) -> None:
    assert draw_align_curves(tmp_path) == []
    write_log(tmp_path, [{"iteration": 1, "reward/all_mean": None, "seconds/sampling": None}, {"note": "hello"}])
    assert draw_align_curves(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def test_ticks_are_whole_iterations(tmp_path: Path) -> None:
    for count in (1, 2, 3, 25):
        records = [{"iteration": i, "reward/all_mean": 0.1 * i} for i in range(count)]
        figure = reward_figure(metrics_of(tmp_path, records))
        assert figure is not None
        ticks = figure.axes[0].get_xticks()
        assert all(tick == int(tick) for tick in ticks)


def test_records_merge_and_later_lines_count(tmp_path: Path) -> None:
    metrics = metrics_of(
        tmp_path,
        [
            {"iteration": 2, "reward/all_mean": 5.0},
            {"iteration": 1, "reward/all_mean": 1.0},
            {"iteration": 2, "held_out/reward_mean": 3.0},
            {"iteration": 2, "reward/all_mean": 2.0},
        ],
    )
    assert metrics.series("iterations", "reward/all_mean") == ([1, 2], [1.0, 2.0])
    assert metrics.series("iterations", "held_out/reward_mean") == ([2], [3.0])
    assert metrics.steps == {}


def test_a_line_that_is_being_written_is_ignored_but_a_broken_one_is_not(tmp_path: Path) -> None:
    path = write_log(tmp_path, [{"step": 1, "train/loss": 2.0}])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"step": 2, "tra', encoding="utf-8")
    assert list(read_metrics(path).steps) == [1]
    path.write_text(whole + '{"step": 2, "tra\n' + whole, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(path)
    path.write_text(whole + "[1]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: found list, expected a JSON object"):
        read_metrics(path)


def test_labels_are_spread_no_further_than_needed() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.2, 0.48, 0.5, 0.55], 0.1) == pytest.approx([0.2, 0.41, 0.51, 0.61])
    assert spread([], 0.1) == []


def test_plot_command_prints_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, ALIGN_RECORDS)
    main(PlotConfig(PlotOptions(run_dir=str(tmp_path))))
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "plots" / f"{name}.png") for name in ("reward", "diversity", "loss", "time")
    ]


def test_plot_command_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--run_dir .*: found no metrics\.jsonl"):
        main(PlotConfig(PlotOptions(run_dir=str(tmp_path))))
    write_log(tmp_path, [])
    with pytest.raises(UserError, match="found no reward, diversity, loss or seconds"):
        main(PlotConfig(PlotOptions(run_dir=str(tmp_path))))
