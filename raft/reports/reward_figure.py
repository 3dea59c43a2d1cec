"""An evaluation of a reward, as a picture: calibration, accuracy by margin, score and length, robustness probes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.reports.curves import BLUE, GRID, INK, VERMILION
from raft.rewards.evaluation import Calibration, Evaluation, Length, ProbeResult, ScoredPairs, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANCE: dict[str, Any] = {"color": "#999999", "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
SCATTER_LIMIT = 2000  # pairs: more points hide each other


def evaluation_figure(pairs: ScoredPairs, evaluation: Evaluation) -> Figure:
    """Three panels above, the probes below. Whiskers are 95% intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    above, below = 3.2, 0.9 + 0.27 * len(evaluation.probes) if evaluation.probes else 0.0
    figure = Figure(figsize=(10, above + below), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    # Two figures in one: the long names of the probes shall not push the panels above them aside.
    parts: Any = figure.subfigures(2, 1, height_ratios=[above, below], hspace=0.04) if below else [figure]
    panels = parts[0].subplots(1, 3, gridspec_kw={"wspace": 0.06})
    draw_calibration(panels[0], evaluation.calibration)
    draw_accuracy(panels[1], evaluation)
    draw_length(panels[2], pairs.scored, evaluation.length)
    if below:
        draw_probes(parts[1].subplots(), evaluation.probes)
    return figure


def draw_calibration(axes: Axes, calibration: Calibration) -> None:
    """Accuracy against confidence; on the dashed line they are equal."""
    axes.plot([0.5, 1], [0.5, 1], **CHANCE)
    _whiskers(axes, [one.confidence for one in calibration.curve], [one.accuracy for one in calibration.curve])
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(0, 1.04)
    _dress(axes, f"Calibration, error {calibration.expected_calibration_error:.3f}")
    axes.set_xlabel("sigmoid of the score difference (dashed: calibrated)")
    axes.set_ylabel("accuracy")


def draw_accuracy(axes: Axes, evaluation: Evaluation) -> None:
    """Accuracy on pairs whose scores are near each other, up to far apart."""
    parts = evaluation.by_score_difference
    axes.axhline(0.5, **CHANCE)
    axes.annotate("a coin's toss", (0.99, 0.51), xycoords=("axes fraction", "data"), ha="right", fontsize=8,
                  color="#777777")  # fmt: skip
    _whiskers(axes, range(len(parts)), [one.accuracy for one in parts])
    labels = [f"{one.low:.2f}\nto {one.high:.2f}" for one in parts]
    axes.set_xticks(range(len(parts)), labels)
    axes.set_xlim(-0.6, len(parts) - 0.4)
    axes.set_ylim(0, 1.04)
    _dress(axes, f"Accuracy, {evaluation.accuracy.share:.1%} of {evaluation.num_pairs}")
    axes.set_xlabel("score difference, either way")


def draw_length(axes: Axes, pairs: ScoredPairs, length: Length) -> None:
    """Every response by its length and score, chosen and rejected apart in colour and mark."""
    few = pairs.pick(np.linspace(0, len(pairs.chosen) - 1, min(len(pairs.chosen), SCATTER_LIMIT)).astype(int))
    sides = (
        ("rejected", few.rejected_length, few.rejected, VERMILION, "x"),
        ("chosen", few.chosen_length, few.chosen, BLUE, "o"),
    )
    for label, lengths, scores, colour, marker in sides:
        edge = 0 if marker == "o" else 0.9
        axes.scatter(
            np.maximum(lengths, 1), scores, s=13, color=colour, marker=marker, alpha=0.6, label=label, linewidths=edge
        )
    axes.set_xscale("log")
    _dress(axes, f"Length, rank correlation {length.responses.spearman:.2f}")
    axes.set_xlabel(f"{length.unit} of the response")
    axes.set_ylabel("score")
    # Above the points, whatever they are: room is made for it.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8.5, handletextpad=0.2, columnspacing=1.0)


def draw_probes(axes: Axes, probes: Sequence[ProbeResult]) -> None:
    """Share of cases in which the score goes up; at the right the mean change."""
    heights = np.arange(len(probes))[::-1]
    colours = [VERMILION if probe.mean_change_ci95[0] > 0 else BLUE for probe in probes]
    axes.axvline(0.5, **CHANCE)
    for height, probe, colour in zip(heights, probes, colours, strict=True):
        (low, high), centre = probe.raised.ci95, probe.raised.share
        axes.hlines(height, low, high, color=colour, linewidth=1.6, zorder=2)
        axes.plot([centre], [height], "o", color=colour, markersize=5.5, zorder=3)
        text = f"{probe.mean_change:+.2f}".replace("-", "\u2212")
        axes.text(1.015, height, text, transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=9)
    axes.text(1.015, len(probes) - 0.35, "mean\nchange", transform=axes.get_yaxis_transform(), fontsize=8, color=INK)
    axes.set_yticks(heights, [probe.what for probe in probes])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.7, len(probes) - 0.3)
    _dress(axes, "Robustness: the chosen response is changed; how often does its score go up?")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of cases; red: up on average")


def _whiskers(axes: Axes, places: Sequence[float], shares: Sequence[Share]) -> None:
    """Shares as points with their intervals and, beside them, the number of pairs."""
    for place, share in zip(places, shares, strict=True):
        axes.vlines(place, *share.ci95, color=BLUE, linewidth=1.6, zorder=2)
        axes.annotate(f"{share.num}", (place, share.ci95[0]), (0, -3), textcoords="offset points",
                      ha="center", va="top", fontsize=8, color=INK)  # fmt: skip
    axes.plot(list(places), [share.share for share in shares], "o", color=BLUE, markersize=5.5, zorder=3)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png")
    os.replace(aside, path)
