"""How every picture looks: colours, axes, names at the ends of curves. One series has one colour in every picture.

The palette is that of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.reports.metrics_log import has_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, INK, GRID = "#56B4E9", "#CC79A7", "#F0E442", "#333333", "#E3E3E3"
PHASE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, "#7A7A7A")
SELECTED, HELD_OUT, ALL, TRAIN = ORANGE, BLUE, "#7A7A7A", GREEN

SMOOTHED_FROM = 40  # points: below that a noisy curve is still readable as it is

Curve = tuple[str, str, list[int], list[float]]  # label, colour, places, values


def new_figure(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of panels one above the other with a common x axis, heights in inches. No pyplot: no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.8 + sum(heights)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights))
    return figure, [row[0] for row in rows]


def draw_curves(
    axes: Axes, title: str, curves: Sequence[Curve], *, height: float, labelled: bool = True, smooth: bool = False
) -> None:
    """Draw the curves that have any number; a long noisy one may be smoothed, with its raw values pale behind it.

    Args:
        height: of the panel in inches, which says how many names fit beside it.
    """
    drawn = [curve for curve in curves if has_number(curve[3])]
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
    dress(axes, title, [place for _, _, places, _ in drawn for place in places])
    if labelled:
        label_ends(axes, height)


def dress(axes: Axes, title: str, places: Sequence[float], *, whole: bool = True) -> None:
    """Title, grid and ticks; ``places`` are the x values drawn, ``whole`` allows whole numbers alone as ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12 if whole else 8, integer=whole, min_n_ticks=1))
    if whole and len(set(places)) == 1:
        axes.set_xlim(places[0] - 0.8, places[0] + 0.8)


def label_ends(axes: Axes, height: float) -> None:
    """Name the curves in the right margin, with and at the height of their last value, kept apart.

    A smoothed curve is drawn after its raw one and takes its place.
    """
    curves = {str(line.get_label()).strip("_").removesuffix(", smoothed"): line for line in axes.get_lines()}
    low, high = axes.get_ylim()
    ends = []
    for label, line in curves.items():
        values = np.asarray(line.get_ydata(), dtype=np.float64)
        value = float(values[np.isfinite(values)][-1])
        text = f"{label}  {short(value)}".replace(" -", " \u2212")
        ends.append(((value - low) / (high - low), text, line.get_color()))
    ends.sort()
    for (_, text, colour), place in zip(ends, spread([end[0] for end in ends], gap=0.29 / height), strict=True):
        axes.text(
            1.02,
            place,
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


def short(value: float) -> str:
    """Two decimals; of a small number two digits."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.095 else f"{value:.2g}"


def scientific(value: float, _: object = None) -> str:
    """2e-5, where matplotlib would set an exponent over the axis, into the title."""
    return np.format_float_scientific(float(f"{value:.3g}"), trim="-", exp_digits=1) if value else "0"


def _smoothed(values: Sequence[float]) -> list[float]:
    """Moving mean over a centred window of a twentieth of the points, NaN left out."""
    half = max(2, len(values) // 40)
    means = []
    for place in range(len(values)):
        window = [value for value in values[max(0, place - half) : place + half + 1] if math.isfinite(value)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def save(figure: Figure, path: Path) -> None:
    """Write aside and rename: whoever looks at the picture during a run never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png")
    os.replace(aside, path)
