"""metrics.jsonl of a run -> plots/{reward, ranking, kl, diversity, length, entropy, loss, time}.png.

A figure is drawn when there is something to put on it. The ``*_figure`` functions build matplotlib figures
and touch no file; the ``draw_*_curves`` functions read a run directory and write its pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raft.reports.canvas import (
    ALL,
    BLUE,
    GRID,
    HELD_OUT,
    INK,
    PHASE_COLOURS,
    VERMILION,
    Curve,
    draw_curves,
    dress,
    label_ends,
    new_figure,
    save,
    scientific,
)
from raft.reports.metrics_log import Metrics, has_number, number, read_metrics
from raft.reports.panels import (
    DIVERSITY_PANELS,
    ENTROPY_PANELS,
    LENGTH_PANELS,
    LOSS_PANELS,
    RANKING_PANELS,
    REWARD,
    Panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE", "GRID", "INK", "PHASE_ORDER", "VERMILION", "Metrics", "draw_align_curves", "draw_training_curves",
    "read_metrics",
]  # fmt: skip

PHASE_ORDER = ("sampling", "scoring", "measuring", "training", "evaluation")  # others follow, as they come

Interval = tuple[int, float, float]  # place, low, high


def draw_align_curves(run_dir: str | Path) -> list[Path]:
    """Draw every picture an align run has data for; returns the files written, below ``plots/``."""
    builders = {
        "reward": reward_figure,
        "ranking": ranking_figure,
        "kl": kl_figure,
        "diversity": diversity_figure,
        "length": length_figure,
        "entropy": entropy_figure,
        "loss": loss_figure,
        "time": time_figure,
    }
    return _draw(Path(run_dir), builders)


def draw_training_curves(run_dir: str | Path) -> list[Path]:
    """Draw the loss curve of an SFT or reward-model run; returns the files written, below ``plots/``."""
    return _draw(Path(run_dir), {"loss": loss_figure})


def reward_figure(metrics: Metrics) -> Figure | None:
    """Mean reward of all samples, of the selected ones and of held-out prompts with its 95% interval."""
    intervals = _intervals(metrics)
    title = "Mean reward" + (", held-out with its 95% interval" if intervals else "")

    def draw_intervals(axes: Axes) -> None:
        if intervals:
            places, lows, highs = zip(*intervals, strict=True)
            axes.fill_between(places, lows, highs, color=HELD_OUT, alpha=0.13, linewidth=0, zorder=1)
            axes.vlines(places, lows, highs, color=HELD_OUT, linewidth=1.2, alpha=0.75, zorder=2)

    return _panels(metrics, "iterations", [Panel(title, REWARD, height=3.6)], under=draw_intervals)


def ranking_figure(metrics: Metrics) -> Figure | None:
    """What ranking gained over random choice, and what it had to choose from."""
    recorded = any(key.startswith("ranking/") for record in metrics.iterations.values() for key in record)
    return _panels(metrics, "iterations", RANKING_PANELS) if recorded else None


def kl_figure(metrics: Metrics) -> Figure | None:
    """Mean reward over the distance from the initial policy, a point an iteration; some have their number beside."""
    kinds = [
        ("all samples", ALL, "kl/per_token", "reward/all_mean"),
        ("held-out", HELD_OUT, "held_out/kl", "held_out/reward_mean"),
    ]
    drawn = [(label, colour, points) for label, colour, x, y in kinds if (points := _points(metrics, x, y))]
    if not drawn:
        return None
    figure, (axes,) = new_figure([3.6])
    for label, colour, points in drawn:
        iterations, distances, rewards = zip(*points, strict=True)
        axes.plot(distances, rewards, color=colour, label=label, linewidth=1.4, marker="o", markersize=4, zorder=3)
        _number_points(axes, iterations, distances, rewards, colour)
    everywhere = [distance for *_, points in drawn for _, distance, _ in points]
    dress(axes, "Mean reward over KL to the initial policy; numbers are iterations", everywhere, whole=False)
    axes.set_xlabel("KL to the initial policy, in nats a token")
    axes.margins(0.06, 0.12)
    label_ends(axes, 3.6)
    return figure


def diversity_figure(metrics: Metrics) -> Figure | None:
    """distinct-2, self-BLEU and repetition of all samples, of the selected ones and of the held-out responses."""
    return _panels(metrics, "iterations", DIVERSITY_PANELS)


def length_figure(metrics: Metrics) -> Figure | None:
    """Mean length and share of responses that ended by themselves."""
    return _panels(metrics, "iterations", LENGTH_PANELS)


def entropy_figure(metrics: Metrics) -> Figure | None:
    """Entropy of the policy; below it the perplexity of reference texts, where recorded."""
    return _panels(metrics, "iterations", ENTROPY_PANELS)


def loss_figure(metrics: Metrics) -> Figure | None:
    """Loss of training and evaluation; below it evaluation accuracy and the learning rate, where recorded."""
    return _panels(metrics, "steps", LOSS_PANELS, needs_first=True)


def time_figure(metrics: Metrics) -> Figure | None:
    """Wall time of every iteration, stacked by phase (``seconds/<phase>``; a total is left out)."""
    phases = _seconds_by_phase(metrics)
    if not phases:
        return None
    places = sorted({place for seconds in phases.values() for place in seconds})
    figure, (axes,) = new_figure([3.6])
    below = np.zeros(len(places))
    for i, (phase, seconds) in enumerate(phases.items()):
        heights = np.array([seconds.get(place, 0.0) for place in places])
        colour = PHASE_COLOURS[i % len(PHASE_COLOURS)]
        axes.bar(places, heights, 0.72, bottom=below, color=colour, edgecolor="white", linewidth=0.6, label=phase)
        below += heights
    dress(axes, "Wall time per iteration, in seconds", places)
    axes.set_xlabel("iteration")
    axes.grid(False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, reverse=True)
    return figure


def _seconds_by_phase(metrics: Metrics) -> dict[str, dict[int, float]]:
    """Phase -> iteration -> seconds, the known phases first and in the order they happen."""
    keys = {key: None for record in metrics.iterations.values() for key in record if key.startswith("seconds/")}
    names = [key.removeprefix("seconds/") for key in keys if key != "seconds/total"]
    ordered = [name for name in PHASE_ORDER if name in names] + [name for name in names if name not in PHASE_ORDER]
    phases = {}
    for name in ordered:
        places, values = metrics.series("iterations", f"seconds/{name}")
        seconds = {place: value for place, value in zip(places, values, strict=True) if math.isfinite(value)}
        if seconds:
            phases[name.replace("_", " ")] = seconds
    return phases


def _panels(
    metrics: Metrics,
    axis: str,
    panels: Sequence[Panel],
    *,
    under: Callable[[Axes], None] = lambda axes: None,
    needs_first: bool = False,
) -> Figure | None:
    """A figure of the panels that have data; None where none has.

    Args:
        axis: "iterations" or "steps".
        under: draws what lies under the first panel's curves, before the names at their ends are placed.
        needs_first: no figure either where the first panel has no data.
    """
    drawn: list[tuple[Panel, list[Curve]]] = []
    for panel in panels:
        curves = [(label, colour, *metrics.series(axis, key)) for label, colour, key in panel.curves]
        if any(has_number(values) for *_, values in curves):
            drawn.append((panel, curves))
    if not drawn or (needs_first and drawn[0][0] is not panels[0]):
        return None
    figure, rows = new_figure([panel.height for panel, _ in drawn])
    under(rows[0])
    for axes, (panel, curves) in zip(rows, drawn, strict=True):
        is_rate = panel.title == "Learning rate"
        draw_curves(axes, panel.title, curves, height=panel.height, labelled=not is_rate, smooth=panel.smooth)
        if is_rate:
            axes.yaxis.set_major_formatter(scientific)
    starts_at_zero = any(0 in places for _, curves in drawn for *_, places, _ in curves)
    names = {"iterations": "iteration" + " (0: before training)" * starts_at_zero, "steps": "optimizer step"}
    rows[-1].set_xlabel(names[axis])
    return figure


def _intervals(metrics: Metrics) -> list[Interval]:
    """Held-out reward's 95% interval by iteration; one without two finite bounds is left out."""
    intervals = []
    for place, record in metrics.iterations.items():
        bounds = record.get("held_out/reward_ci95")
        if isinstance(bounds, list) and len(bounds) == 2 and all(map(math.isfinite, map(number, bounds))):
            intervals.append((place, float(bounds[0]), float(bounds[1])))
    return intervals


def _points(metrics: Metrics, x_key: str, y_key: str) -> list[tuple[int, float, float]]:
    """(iteration, x, y) wherever both were recorded."""
    found = []
    for iteration, record in metrics.iterations.items():
        x, y = number(record.get(x_key)), number(record.get(y_key))
        if math.isfinite(x) and math.isfinite(y):
            found.append((iteration, x, y))
    return found


def _number_points(
    axes: Axes, iterations: Sequence[int], xs: Sequence[float], ys: Sequence[float], colour: str
) -> None:
    """Write its number over the first and the last point and over some in between, at most about six."""
    every = max(1, -(-len(iterations) // 5))
    last = len(iterations) - 1
    for i in sorted({i for i in range(0, last, every) if last - i >= every / 2} | {last}):
        axes.annotate(
            str(iterations[i]),
            (xs[i], ys[i]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )


def _draw(run_dir: Path, builders: Mapping[str, Callable[[Metrics], Figure | None]]) -> list[Path]:
    metrics = read_metrics(run_dir / "metrics.jsonl")
    written = []
    for name, build in builders.items():
        figure = build(metrics)
        if figure is not None:
            written.append(run_dir / "plots" / f"{name}.png")
            save(figure, written[-1])
    return written
