"""Records of runs -> what the page's script is given: plain values that are JSON as they stand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from raft import __version__
from raft.reports.page.charts import charts
from raft.reports.page.records import Records, read_alarms, read_risen, read_rows
from raft.reports.page.summary import FACT_LABELS, RESULT_LABELS, alarm_count, comparison, facts, results
from raft.reports.page.texts import Choice, Group, Prompts, choose, columns, number
from raft.run_directory import json_safe

MAX_POINTS = 600  # of a curve over optimizer steps


def overview(runs: Sequence[Records]) -> dict[str, Any]:
    """Everything but the texts."""
    found = {
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "runs": [describe(run) for run in runs],
        "labels": {"results": RESULT_LABELS, "facts": FACT_LABELS},
        "comparison": comparison(runs),
        "charts": [asdict(chart) for chart in charts(_keys(runs))],
    }
    safe: dict[str, Any] = json_safe(found)
    return safe


def describe(run: Records) -> dict[str, Any]:
    """One run: what it was, its results, alarms and metrics."""
    alarms = read_alarms(run)
    config = run.path / "config.yaml"
    return {
        "name": run.name,
        "command": run.command,
        "finished": bool(run.summary),
        "best_iteration": run.summary.get("best_iteration"),
        "facts": facts(run),
        "results": results(run),
        "alarms": alarms,
        "num_alarms": alarm_count(alarms),
        "watched": bool(run.drift_files()),
        "risen": read_risen(run),
        "iterations": series(run, "iterations"),
        "steps": series(run, "steps"),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False) if run.environment else "",
    }


def series(run: Records, axis: str) -> dict[str, Any]:
    """Where there are values on an axis, and for every key its value there (a number, an interval or null).

    Steps beyond ``MAX_POINTS`` are averaged in runs of equal length; ``every`` is that length.
    """
    rows: dict[int, dict[str, Any]] = getattr(run.metrics, axis)
    places = list(rows)
    keys = dict.fromkeys(key for row in rows.values() for key in row if "/" in key)
    values = {key: [_value(rows[place].get(key)) for place in places] for key in keys}
    every = -(-len(places) // MAX_POINTS)
    if axis == "iterations" or every <= 1:
        return {"places": places, "values": values, "every": 1}
    cuts = range(0, len(places), every)
    return {
        "places": [places[min(cut + every, len(places)) - 1] for cut in cuts],
        "values": {key: [_mean(column[cut : cut + every]) for cut in cuts] for key, column in values.items()},
        "every": every,
    }


def _value(value: Any) -> float | list[float | None] | None:
    if isinstance(value, list) and len(value) == 2:
        return [number(one) for one in value]
    return float(f"{value:.6g}") if number(value) is not None else None


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, float)]
    return float(f"{sum(numbers) / len(numbers):.6g}") if numbers else None


def _keys(runs: Sequence[Records]) -> dict[str, set[str]]:
    """Axis -> the keys with a number on it in any of the runs."""
    return {
        axis: {
            key
            for run in runs
            for row in getattr(run.metrics, axis).values()
            for key, value in row.items()
            if "/" in key and number(value) is not None
        }
        for axis in ("iterations", "steps")
    }


# ---------------------------------------------------------------- the texts on it


Texts = dict[str, dict[int, Choice]]  # "samples" and "held_out" -> iteration -> what could come onto the page


def gather(run: Records, budget: float) -> Texts:
    """The candidates of a run: half of the budget (characters) for held-out responses, the rest for samples."""
    held_out, samples = run.held_out_files(), run.sample_files()
    found: Texts = {
        "held_out": {
            i: choose(read_rows(path), budget=budget / 2 / len(held_out), extremes=False)
            for i, path in held_out.items()
        },
        "samples": {i: choose(read_rows(path), budget=budget / len(samples)) for i, path in samples.items()},
    }
    return found


def laid_out(texts: Sequence[Texts], share: float) -> dict[str, Any]:
    """The columns of what is kept when every iteration may have ``share`` of its candidates' characters."""
    prompts = Prompts()
    kept = []
    for run in texts:
        parts: dict[str, Any] = {}
        for name, choices in run.items():
            groups = {i: choice.within(share * choice.size) for i, choice in choices.items()}
            if name == "held_out":  # the same prompts at every evaluation, or nothing could be compared
                count = min(map(len, groups.values()), default=0)
                groups = {i: some[:count] for i, some in groups.items()}
            flat = [(i, group) for i, some in groups.items() for group in some]
            tallies = [_tally(i, choices[i], groups[i]) for i in choices]
            parts[name] = {"columns": columns(flat, prompts), "tallies": tallies}
        kept.append(parts)
    return {"texts": kept, "prompts": prompts.entries}


def _tally(iteration: int, choice: Choice, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "samples": choice.num_samples,
        "prompts": choice.num_prompts,
        "selected": choice.num_selected,
        "discarded": dict(choice.discarded.most_common()),
        "shown_samples": sum(len(group.rows) for group in groups),
        "shown_prompts": len(groups),
    }
