"""metrics.jsonl of a run, read back: what was recorded at which iteration and at which optimizer step."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raft import json_file
from raft.errors import UserError


@dataclass
class Metrics:
    """Merged records: iteration -> values, optimizer step -> values, each in rising order."""

    iterations: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)

    def series(self, axis: str, key: str) -> tuple[list[int], list[float]]:
        """Where ``key`` was recorded on ``axis`` ("iterations" or "steps"), and its values; null is NaN."""
        records: dict[int, dict[str, Any]] = getattr(self, axis)
        places = [place for place, values in records.items() if key in values]
        return places, [number(records[place][key]) for place in places]


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a missing file is an empty one.

    Lines with a ``step`` are optimizer steps, others with an ``iteration`` belong to that iteration. Where a
    resumed run wrote a value again, the later one counts. A last line that is still being written is ignored.
    Raises UserError naming file and line for anything else that is not a JSON object.
    """
    metrics = Metrics()
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json_file.parse(line, where)
        except UserError:
            if number == len(lines):  # not ended by a newline
                break
            raise
        if not isinstance(record, dict):
            raise UserError(f"{where}: found {type(record).__name__}, expected a JSON object.")
        for key, group in (("step", metrics.steps), ("iteration", metrics.iterations)):
            if key in record:
                group.setdefault(_place(record[key], key, where), {}).update(record)
                break
    return Metrics(dict(sorted(metrics.iterations.items())), dict(sorted(metrics.steps.items())))


def _place(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise UserError(f'{where}: "{key}": found {str(value)[:40]!r}, expected a whole number from 0.')
    return value


def number(value: Any) -> float:
    """The value as a float, NaN for anything that is no finite number (or none that a float can hold)."""
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else math.nan


def has_number(values: Sequence[float]) -> bool:
    """Whether there is anything to draw."""
    return any(math.isfinite(value) for value in values)
