"""metrics.jsonl of a run -> plots/{reward, diversity, loss, time}.png.

A figure is drawn when there is something to put on it. The ``*_figure`` functions build matplotlib figures
and touch no file; the ``draw_*_curves`` functions read a run directory and write its pictures. One series has
one colour in every picture, from the palette of Okabe and Ito that colour-blind readers can tell apart.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, INK, GRID = "#56B4E9", "#CC79A7", "#F0E442", "#333333", "#E3E3E3"
PHASE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW)
PHASE_ORDER = ("sampling", "scoring", "training", "evaluation")  # others follow, as they come
SELECTED, HELD_OUT, ALL, TRAIN = ORANGE, BLUE, "#7A7A7A", GREEN

SMOOTHED_FROM = 40  # points: below that a noisy curve is still readable as it is


@dataclass
class Metrics:
    """Merged records: iteration -> values, optimizer step -> values, each in rising order."""

    iterations: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)

    def series(self, axis: str, key: str) -> tuple[list[int], list[float]]:
        """Where ``key`` was recorded on ``axis`` ("iterations" or "steps"), and its values; null is NaN."""
        records: dict[int, dict[str, Any]] = getattr(self, axis)
        places = [place for place, values in records.items() if key in values]
        return places, [_number(records[place][key]) for place in places]


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a missing file is an empty one.

    Lines with a ``step`` are optimizer steps, others with an ``iteration`` belong to that iteration. Where a
    resumed run wrote a value again, the later one counts. A last line that is still being written is ignored.
    Raises UserError naming file and line for anything else that is not a JSON object.
    """
    metrics = Metrics()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # not ended by a newline
                break
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}).") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: found {type(record).__name__}, expected a JSON object.")
        for key, group in (("step", metrics.steps), ("iteration", metrics.iterations)):
            if key in record:
                group.setdefault(record[key], {}).update(record)
                break
    return Metrics(dict(sorted(metrics.iterations.items())), dict(sorted(metrics.steps.items())))


def draw_align_curves(run_dir: str | Path) -> list[Path]:
    """Draw every picture an align run has data for; returns the files written, below ``plots/``."""
    builders = {
        "reward": reward_figure,
        "diversity": diversity_figure,
        "loss": loss_figure,
        "time": time_figure,
    }
    return _draw(Path(run_dir), builders)


def draw_training_curves(run_dir: str | Path) -> list[Path]:
    """Draw the loss curve of an SFT or reward-model run; returns the files written, below ``plots/``."""
    return _draw(Path(run_dir), {"loss": loss_figure})


def reward_figure(metrics: Metrics) -> Figure | None:
    """Mean reward of all samples, of the selected ones and of held-out prompts with its 95% interval."""
    curves = [
        ("all samples", ALL, *metrics.series("iterations", "reward/all_mean")),
        ("selected", SELECTED, *metrics.series("iterations", "reward/selected_mean")),
        ("held-out", HELD_OUT, *metrics.series("iterations", "held_out/reward_mean")),
    ]
    intervals = _intervals(metrics)
    title = "Mean reward" + (", held-out with its 95% interval" if intervals else "")
    return _iteration_figure(title, curves, intervals)


def diversity_figure(metrics: Metrics) -> Figure | None:
    """distinct-2 of all samples, of the selected ones and of the held-out responses."""
    curves = [
        ("all samples", ALL, *metrics.series("iterations", "diversity/distinct-2")),
        ("selected", SELECTED, *metrics.series("iterations", "diversity/selected_distinct-2")),
        ("held-out", HELD_OUT, *metrics.series("iterations", "held_out/distinct-2")),
    ]
    title = "Diversity: distinct-2, the share of different bigrams"
    return _iteration_figure(title, curves)


def loss_figure(metrics: Metrics) -> Figure | None:
    """Loss of training and evaluation; below it evaluation accuracy and the learning rate, where recorded."""
    panels = [
        ("Loss", [("train", TRAIN, "train/loss"), ("held-out", HELD_OUT, "eval/loss")], 3.0),
        ("Accuracy", [("held-out", HELD_OUT, "eval/accuracy")], 1.6),
        ("Learning rate", [("learning rate", INK, "train/learning_rate")], 1.0),
    ]
    drawn = []
    for title, keys, height in panels:
        curves = [(label, colour, *metrics.series("steps", key)) for label, colour, key in keys]
        if any(_has_number(values) for *_, values in curves):
            drawn.append((title, curves, height))
    if not drawn or drawn[0][0] != "Loss":
        return None
    heights = [height for *_, height in drawn]
    figure, rows = _figure(heights)
    for axes, (title, curves, _) in zip(rows, drawn, strict=True):
        _draw_curves(axes, title, curves, labelled=title != "Learning rate", smooth=title == "Loss")
        if title == "Learning rate":
            axes.yaxis.set_major_formatter(_scientific)
    rows[-1].set_xlabel("optimizer step")
    return figure


def time_figure(metrics: Metrics) -> Figure | None:
    """Wall time of every iteration, stacked by phase (``seconds/<phase>``; a total is left out)."""
    phases = _seconds_by_phase(metrics)
    if not phases:
        return None
    places = sorted({place for seconds in phases.values() for place in seconds})
    figure, (axes,) = _figure([3.6])
    below = np.zeros(len(places))
    for number, (phase, seconds) in enumerate(phases.items()):
        heights = np.array([seconds.get(place, 0.0) for place in places])
        colour = PHASE_COLOURS[number % len(PHASE_COLOURS)]
        axes.bar(places, heights, 0.72, bottom=below, color=colour, edgecolor="white", linewidth=0.6, label=phase)
        below += heights
    _dress(axes, "Wall time per iteration, in seconds", places)
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


Curve = tuple[str, str, list[int], list[float]]  # label, colour, places, values
Interval = tuple[int, float, float]  # place, low, high


def _iteration_figure(title: str, curves: Sequence[Curve], intervals: Sequence[Interval] = ()) -> Figure | None:
    if not any(_has_number(values) for *_, values in curves):
        return None
    figure, (axes,) = _figure([3.6])
    if intervals:
        places, lows, highs = zip(*intervals, strict=True)
        axes.fill_between(places, lows, highs, color=HELD_OUT, alpha=0.13, linewidth=0, zorder=1)
        axes.vlines(places, lows, highs, color=HELD_OUT, linewidth=1.2, alpha=0.75, zorder=2)
    _draw_curves(axes, title, curves, labelled=True)
    axes.set_xlabel("iteration" + (" (0: before training)" if 0 in curves[-1][2] else ""))
    return figure


def _figure(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels one above the other with a common x axis. No pyplot, hence no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.8 + sum(heights)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights))
    return figure, [row[0] for row in rows]


def _draw_curves(axes: Axes, title: str, curves: Sequence[Curve], *, labelled: bool, smooth: bool = False) -> None:
    drawn = [curve for curve in curves if _has_number(curve[3])]
    for label, colour, places, values in drawn:
        many = len(values) >= SMOOTHED_FROM
        style: dict[str, Any] = {
            "color": colour, "linewidth": 1.8, "marker": "" if many else "o", "markersize": 4, "zorder": 3,
        }  # fmt: skip
        if many and smooth:
            axes.plot(places, values, label=label, **style | {"alpha": 0.3, "linewidth": 0.9, "zorder": 2})
            axes.plot(places, _smoothed(values), label=f"_{label}, smoothed", **style)
        else:
            axes.plot(places, values, label=label, **style)
    _dress(axes, title, [place for _, _, places, _ in drawn for place in places])
    if labelled:
        _label_ends(axes)


def _intervals(metrics: Metrics) -> list[Interval]:
    """Held-out reward's 95% interval by iteration; one without two finite bounds is left out."""
    intervals = []
    for place, record in metrics.iterations.items():
        bounds = record.get("held_out/reward_ci95")
        if isinstance(bounds, list) and len(bounds) == 2 and all(map(math.isfinite, map(_number, bounds))):
            intervals.append((place, float(bounds[0]), float(bounds[1])))
    return intervals


def _dress(axes: Axes, title: str, places: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    if len(set(places)) == 1:
        axes.set_xlim(places[0] - 0.8, places[0] + 0.8)


def _label_ends(axes: Axes) -> None:
    """Name the curves in the right margin, with and at the height of their last value, kept apart.

    A smoothed curve is drawn after its raw one and takes its place.
    """
    curves = {str(line.get_label()).strip("_").removesuffix(", smoothed"): line for line in axes.get_lines()}
    low, high = axes.get_ylim()
    ends = []
    for label, line in curves.items():
        values = np.asarray(line.get_ydata(), dtype=np.float64)
        value = float(values[np.isfinite(values)][-1])
        ends.append(((value - low) / (high - low), f"{label}  {value:.2f}".replace(" -", " \u2212"), line.get_color()))
    ends.sort()
    for (_, text, colour), height in zip(ends, spread([end[0] for end in ends], gap=0.08), strict=True):
        axes.text(
            1.02,
            height,
            text,
            color=colour,
            transform=axes.transAxes,
            va="center",
            fontsize=9.5,
            weight="bold",
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as a simple rule can so that neighbours are at least ``gap`` apart."""
    groups: list[list[float]] = []  # neighbours that touch share one group, centred on their mean
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + gap * place for group in groups for place in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def _scientific(value: float, _: object = None) -> str:
    """2e-5, where matplotlib would set an exponent over the axis, into the title."""
    return np.format_float_scientific(value, precision=2, trim="-", exp_digits=1) if value else "0"


def _smoothed(values: Sequence[float]) -> list[float]:
    """Moving mean over a centred window of a twentieth of the points, NaN left out."""
    half = max(2, len(values) // 40)
    means = []
    for place in range(len(values)):
        window = [value for value in values[max(0, place - half) : place + half + 1] if math.isfinite(value)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _has_number(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _draw(run_dir: Path, builders: Mapping[str, Callable[[Metrics], Figure | None]]) -> list[Path]:
    metrics = read_metrics(run_dir / "metrics.jsonl")
    written = []
    for name, build in builders.items():
        figure = build(metrics)
        if figure is not None:
            written.append(run_dir / "plots" / f"{name}.png")
            _save(figure, written[-1])
    return written


def _save(figure: Figure, path: Path) -> None:
    """Write aside and rename: whoever looks at the picture during a run never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png")
    os.replace(aside, path)
