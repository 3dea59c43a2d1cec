"""Which curves the page draws: metric keys -> charts, in an order that puts the telling ones first.

Keys are ``group/name``. A metric that is measured for all samples, for the selected ones and on held-out prompts
becomes one chart with three curves; a metric that nobody has heard of here becomes a chart of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from raft.reports.curves import PHASE_ORDER

# Chart -> its title, in the order of the page. What is not here follows by group, under "more".
TITLES = {
    "reward/mean": "Mean reward",
    "diversity/distinct-2": "distinct-2 (different word pairs)",
    "response/length_mean": "Tokens a response",
    "response/eos_share": "Share of responses that end by themselves",
    "kl/path": "Mean reward over KL to the initial policy, nats a token",
    "kl/per_token": "KL to the initial policy, nats a token",
    "entropy/policy": "Entropy of the next token, nats",
    "ranking/spread": "Spread of the rewards (standard deviation)",
    "train/loss": "Loss",
    "eval/accuracy": "Accuracy on held-out pairs",
    "train/learning_rate": "Learning rate",
}
SECTIONS = {
    "reward": "Reward",
    "ranking": "Ranking",
    "diversity": "Diversity",
    "response": "Responses",
    "kl": "KL to the initial policy",
    "entropy": "Entropy",
    "drift": "Drift watch",
    "train": "Training",
    "eval": "Evaluation",
    "held_out": "Held-out prompts",
    "samples": "Samples",
    "seconds": "Time",
}
# Key -> the chart that it belongs to and the part that it is about, where the key's name does not tell.
JOINED = {
    "held_out/reward_mean": ("reward/mean", "held_out"),
    "eval/loss": ("train/loss", "held_out"),
    "held_out/kl": ("kl/per_token", "held_out"),
    "held_out/entropy": ("entropy/policy", "held_out"),
    "ranking/within_prompt_std": ("ranking/spread", "within"),
    "ranking/between_prompt_std": ("ranking/spread", "between"),
}
PARTS = {"all": "all samples", "selected": "selected", "held_out": "held-out", "within": "within a prompt",
         "between": "between prompts", "": ""}  # fmt: skip
# Part -> across and up, where both are recorded.
PATHS = {"all": ("kl/per_token", "reward/all_mean"), "held_out": ("held_out/kl", "held_out/reward_mean")}


@dataclass(frozen=True)
class Curve:
    """One metric in a chart. ``part``, of ``PARTS``, says the colour; ``across`` is the key of a path's other axis."""

    key: str
    label: str
    part: str
    across: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes. ``axis`` is "iterations" or "steps"; ``kind`` "lines", "bars" (stacked) or "path"."""

    title: str
    section: str
    axis: str
    curves: tuple[Curve, ...]
    first: bool  # shown at once, not under "more"
    kind: str = "lines"


def charts(metrics: Mapping[str, Collection[str]]) -> list[Chart]:
    """Every chart there is something to draw for.

    Args:
        metrics: axis ("iterations", "steps") -> the keys with at least one finite number on it.
    """
    found: list[Chart] = []
    for axis, keys in metrics.items():
        grouped: dict[str, list[Curve]] = {}
        for key in sorted(keys, key=_by_part):
            if axis == "iterations" and key in metrics.get("steps", ()):
                continue  # an iteration's mean of what is drawn step by step
            name, part = place(key, set(keys))
            grouped.setdefault(name, []).append(Curve(key, PARTS[part], part))
        seconds = [grouped.pop(name)[0] for name in sorted(grouped) if name.startswith("seconds/")]
        found += [_chart(name, axis, curves) for name, curves in grouped.items()]
        if seconds and axis == "iterations":
            found.append(_time_chart(seconds))
        there = {part: path for part, path in PATHS.items() if set(path) <= set(keys)}
        paths = tuple(Curve(up, PARTS[part], part, across) for part, (across, up) in there.items())
        if paths:
            found.append(Chart(TITLES["kl/path"], SECTIONS["kl"], axis, paths, True, "path"))
    return sorted(found, key=_order)


def place(key: str, keys: set[str]) -> tuple[str, str]:
    """The chart that a metric belongs to, as ``group/name``, and which part of the samples it is about."""
    if key in JOINED:
        return JOINED[key]
    group, _, name = key.partition("/")
    if group == "held_out":
        for other in sorted(keys):
            room, _, rest = other.partition("/")
            if room not in ("held_out", "") and rest.removeprefix("all_") == name:
                return f"{room}/{name}", "held_out"
        return key, "held_out"
    match = re.match(r"(all|selected)_(.+)", name)
    if match:
        return f"{group}/{match[2]}", match[1]
    joined = any(chart == key and other in keys for other, (chart, _) in JOINED.items() if group != "train")
    has_parts = joined or f"{group}/selected_{name}" in keys or f"held_out/{name}" in keys
    return key, "all" if has_parts else ""


def _by_part(key: str) -> tuple[int, str]:
    """All samples first, then the selected ones, then held-out."""
    held_out = key.startswith(("held_out/", "eval/"))
    return 2 if held_out else int("/selected_" in key), key


def _chart(name: str, axis: str, curves: list[Curve]) -> Chart:
    group, _, rest = name.partition("/")
    title = TITLES.get(name, rest.replace("_", " ") or name)
    if group == "train" and len(curves) > 1:
        curves = [Curve(c.key, c.label or "training", c.part) for c in curves]
    return Chart(title, SECTIONS.get(group, group.replace("_", " ").capitalize()), axis, tuple(curves), name in TITLES)


def _time_chart(seconds: list[Curve]) -> Chart:
    phases = {curve.key.partition("/")[2]: curve.key for curve in seconds if not curve.key.endswith("/total")}
    names = [name for name in PHASE_ORDER if name in phases]
    names += [name for name in phases if name not in names]
    curves = tuple(Curve(phases[name], name, "") for name in names)
    return Chart("Seconds an iteration, by phase", "Time", "iterations", curves, True, "bars")


def _order(chart: Chart) -> tuple[Any, ...]:
    titles, sections = list(TITLES.values()), list(SECTIONS.values())
    known = titles.index(chart.title) if chart.first and chart.title in titles else len(titles)
    section = sections.index(chart.section) if chart.section in sections else len(sections)
    return (not chart.first, known, section, chart.section, chart.title)
