from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from raft.errors import UserError
from raft.reports.canvas import PHASE_COLOURS, scientific, short, spread
from raft.reports.curves import (
    diversity_figure,
    draw_align_curves,
    draw_training_curves,
    entropy_figure,
    kl_figure,
    length_figure,
    loss_figure,
    ranking_figure,
    reward_figure,
    time_figure,
)
from raft.reports.metrics_log import Metrics, read_metrics
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


RANKED: list[dict[str, Any]] = [
    {
        "iteration": 0, "held_out/reward_mean": -1.0, "held_out/kl": 0.0, "held_out/entropy": 2.0,
        "held_out/perplexity": 9.5,
    },
    {
        "iteration": 1, "reward/all_mean": -0.9, "reward/selected_mean": 0.5, "kl/per_token": 0.0,
        "entropy/policy": 2.2, "ranking/random_mean": -0.8, "ranking/best_of_n_mean": 0.6,
        "ranking/within_prompt_std": 0.5, "ranking/between_prompt_std": 0.7, "ranking/length_correlation": None,
        "response/length_mean": 40.5, "response/selected_length_mean": 41.0, "response/eos_share": 0.25,
        "diversity/self_bleu-4": 0.3, "diversity/repetition-4": 0.01,
    },
    {"iteration": 2, "reward/all_mean": -0.5, "kl/per_token": 0.1, "entropy/policy": 1.9},
    {
        "iteration": 2, "held_out/reward_mean": -0.4, "held_out/kl": 0.2, "held_out/entropy": 1.5,
        "held_out/perplexity": 11.0, "held_out/length_mean": 50.0, "held_out/eos_share": 0.5,
    },
]  # fmt: skip


def panels_of(figure: Any) -> dict[str, Mapping[str, tuple[list[float], list[float]]]]:
    return {axes.get_title(loc="left"): lines_of(figure, i) for i, axes in enumerate(figure.axes)}


def test_kl_figure_pairs_distance_and_reward_of_one_policy(tmp_path: Path) -> None:
    figure = kl_figure(metrics_of(tmp_path, RANKED))
    assert lines_of(figure) == {
        "all samples": ([0.0, 0.1], [-0.9, -0.5]),
        "held-out": ([0.0, 0.2], [-1.0, -0.4]),
    }
    assert figure is not None
    numbers = [(text.get_text(), text.xy) for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert numbers == [("1", (0.0, -0.9)), ("2", (0.1, -0.5)), ("0", (0.0, -1.0)), ("2", (0.2, -0.4))]
    assert kl_figure(metrics_of(tmp_path, ALIGN_RECORDS)) is None


def test_of_many_points_few_are_numbered(tmp_path: Path) -> None:
    records = [{"iteration": i, "reward/all_mean": 0.1 * i, "kl/per_token": 0.01 * i} for i in range(1, 41)]
    figure = kl_figure(metrics_of(tmp_path, records))
    assert figure is not None
    numbers = [int(text.get_text()) for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert numbers == [1, 9, 17, 25, 33, 40]


def test_ranking_figure_leaves_out_what_has_no_value(tmp_path: Path) -> None:
    assert panels_of(ranking_figure(metrics_of(tmp_path, RANKED))) == {
        "Mean reward: selected, chosen at random, best of n": {
            "random choice": ([1], [-0.8]), "best of n": ([1], [0.6]), "selected": ([1], [0.5]),
        },
        "Spread of the reward: standard deviation": {
            "within a prompt": ([1], [0.5]), "between prompts": ([1], [0.7]),
        },
    }  # fmt: skip


def test_length_entropy_and_diversity_figures_have_their_panels(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, RANKED)
    assert panels_of(length_figure(metrics)) == {
        "Mean length in tokens": {
            "all samples": ([1], [40.5]), "selected": ([1], [41.0]), "held-out": ([2], [50.0]),
        },
        "Share that ended by EOS": {"all samples": ([1], [0.25]), "held-out": ([2], [0.5])},
    }  # fmt: skip
    assert panels_of(entropy_figure(metrics)) == {
        "Mean entropy of the next token, in nats": {
            "all samples": ([1, 2], [2.2, 1.9]), "held-out": ([0, 2], [2.0, 1.5]),
        },
        "Perplexity of held-out reference texts": {"reference texts": ([0, 2], [9.5, 11.0])},
    }  # fmt: skip
    assert list(panels_of(diversity_figure(metrics))) == [
        "Self-BLEU: how much responses resemble each other",
        "Repetition: 4-grams that came before in their response",
    ]


def test_every_picture_of_a_full_run_is_written(tmp_path: Path) -> None:
    write_log(tmp_path, [*ALIGN_RECORDS, *RANKED])
    names = ["reward", "ranking", "kl", "diversity", "length", "entropy", "loss", "time"]
    assert [path.stem for path in draw_align_curves(tmp_path)] == names


def test_nothing_that_is_written_leaves_the_picture(tmp_path: Path) -> None:
    """Titles, names at the ends and ticks all lie inside, whatever the number of iterations."""
    for count in (1, 6, 40):
        records: list[dict[str, Any]] = [
            {**record, "iteration": 2 * i + record["iteration"]} for i in range(count) for record in RANKED
        ]
        metrics = metrics_of(tmp_path, records)
        for build in (ranking_figure, kl_figure, diversity_figure, length_figure, entropy_figure):
            figure: Any = build(metrics)
            figure.canvas.draw()
            box = figure.get_tightbbox()
            assert box.x0 >= 0 and box.y0 >= 0, build.__name__  # noqa: PT018
            assert box.x1 <= figure.get_figwidth(), build.__name__
            assert box.y1 <= figure.get_figheight(), build.__name__


def test_phases_have_different_colours() -> None:
    assert len(set(PHASE_COLOURS)) == len(PHASE_COLOURS) == 8


def test_numbers_at_the_ends_are_short() -> None:
    assert [short(value) for value in (1.0, -0.1, 0.095, 0.0123, 0.0, 64.25)] == [
        "1.00", "-0.10", "0.10", "0.012", "0.00", "64.25",
    ]  # fmt: skip
    assert [scientific(value) for value in (0.0, 4e-5, 3.9999999e-5, 2.35e-4)] == ["0", "4e-5", "4e-5", "2.35e-4"]
