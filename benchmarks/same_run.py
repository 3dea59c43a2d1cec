"""Whether two run directories are those of the same run: every file, but for what a clock says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

CLOCK = re.compile(r"time|seconds([/_].*)?|tokens_per_second|log_length")
UNCOMPARED = re.compile(
    # What a run was started by and when, and pictures and pages, which show the time as well.
    r"config\.yaml|environment\.json|run\.lock|plots/.*|report\.html|tensorboard/.*|.*/manifest\.json"
)


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that differ, or that only one of the runs has."""
    names = {file_names(one), file_names(other)}
    if len(names) > 1:
        return [f"only in one: {name}" for name in sorted(file_names(one) ^ file_names(other))]
    return [name for name in sorted(names.pop()) if not same_file(one / name, other / name)]


def file_names(run: Path) -> frozenset[str]:
    """Paths of the files that count, relative to the run."""
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return frozenset(name for name in found if not UNCOMPARED.fullmatch(name))


def same_file(one: Path, other: Path) -> bool:
    """Bytes of two files, or what they hold: JSON less the clock's values, tensors."""
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".json":
        return without_clock(json.loads(one.read_text())) == without_clock(json.loads(other.read_text()))
    if one.name == "README.md":
        return without_place(one) == without_place(other)
    if one.name == "metrics.jsonl":
        return lines(one) == lines(other)
    if one.name == "before_after.md":
        return re.sub(r"(?m)^seconds: .*$", "", one.read_text()) == re.sub(r"(?m)^seconds: .*$", "", other.read_text())
    return one.suffix == ".pt" and same_value(load(one), load(other))


def without_place(card: Path) -> str:
    """A model card without the directory of its run."""
    return card.read_text().replace(str(card.parent.parent), "RUN")


def lines(path: Path) -> list[Any]:
    """Rows of a JSONL file without the clock's values."""
    return [without_clock(json.loads(line)) for line in path.read_text().splitlines()]


def without_clock(value: Any) -> Any:
    """A JSON value without what a clock says."""
    if isinstance(value, dict):
        return {name: without_clock(item) for name, item in value.items() if not CLOCK.fullmatch(name)}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def load(path: Path) -> Any:
    """A file of tensors, without running what may be pickled beside them."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def same_value(one: Any, other: Any) -> bool:
    """Equality to the last bit, through containers and objects."""
    import torch

    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_value(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    if hasattr(one, "__dict__") and not callable(one):
        return same_value(vars(one), vars(other))
    return bool(one == other) or callable(one)
