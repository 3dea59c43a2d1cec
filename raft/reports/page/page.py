"""Runs -> report.html: one file, no network, nothing in it that the runs' texts could start.

The data travels as one block of deflated JSON in base64, whose alphabet has no character that HTML gives a meaning
to. The page's own script writes it into the document as text only, and the policy in the page's head (which names
script and style by their hashes, forbids connections and everything else, and makes the browser refuse to parse
strings as HTML) stands behind that.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from raft import __version__
from raft.reports.page.charts import charts
from raft.reports.page.records import Records, distinct_names, read_alarms, read_records, read_risen, read_rows
from raft.reports.page.summary import FACT_LABELS, RESULT_LABELS, alarm_count, comparison, facts, results
from raft.reports.page.texts import Choice, Group, Prompts, choose, columns, number
from raft.run_directory import json_safe, write_text

PARTS = ("format.js", "charts.js", "tables.js", "samples.js", "page.js")  # one script, in this order

MAX_POINTS = 600  # of a curve over optimizer steps
MEGABYTE = 1_000_000
CHARACTERS_PER_BYTE = 4.0  # more than deflate and base64 ever give for responses of a model


def write_page(paths: Sequence[str | Path], output: Path | None = None, *, max_megabytes: float = 4.0) -> Path:
    """Read runs and write their page, whole or not at all.

    Args:
        paths: run directories; the first is the one that others are compared with.
        output: the file; None is report.html in the first run directory.
        max_megabytes: what the page may take. Sample texts are left out beyond it, and the page says how many.

    Raises:
        UserError: for a directory that holds no run, or a record in it that can not be read.
    """
    runs = [read_records(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)]
    output = output or runs[0].path / "report.html"
    write_text(output, build_page(runs, max_megabytes=max_megabytes))
    return output


def build_page(runs: Sequence[Records], *, max_megabytes: float = 4.0) -> str:
    """The page as text, within ``max_megabytes`` as far as leaving out sample texts gets it there."""
    limit = max_megabytes * MEGABYTE
    texts = [gather(run, limit * CHARACTERS_PER_BYTE / len(runs)) for run in runs]
    fixed = {
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "runs": [describe(run) for run in runs],
        "labels": {"results": RESULT_LABELS, "facts": FACT_LABELS},
        "comparison": comparison(runs),
        "charts": [asdict(chart) for chart in charts(_keys(runs))],
    }
    share, page = 1.0, ""
    for _ in range(8):
        page = render(fixed | laid_out(texts, share))
        if len(page) <= limit or share < 1e-3:
            break
        share *= 0.9 * limit / len(page)
    return page


# ---------------------------------------------------------------- what is on it


def describe(run: Records) -> dict[str, Any]:
    """Everything about a run but its texts."""
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


# ---------------------------------------------------------------- how it becomes a file


def render(data: dict[str, Any]) -> str:
    """The page around its data."""
    script = "\n".join(_part(name) for name in PARTS)
    style = _part("style.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    names = ", ".join(run["name"] for run in data["runs"])
    values = {"POLICY": policy, "TITLE": html.escape(names), "STYLE": style, "SCRIPT": script, "DATA": packed(data)}
    # One pass over the template: what a value contains is never looked at again.
    pieces = _part("template.html").split("%%")
    return "".join(values[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def packed(data: Any) -> str:
    """JSON, deflated without a header, in base64."""
    text = json.dumps(json_safe(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(deflate.compress(text.encode("ascii")) + deflate.flush()).decode("ascii")


def _part(name: str) -> str:
    return (resources.files("raft.reports.page") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
