"""Where metrics go besides metrics.jsonl, line by line: TensorBoard always, W&B and trackio where asked for.

A line belongs to an optimizer step or to an iteration. ``train/`` keys of an iteration are means of what its steps
have logged, and are left out: a chart has one x axis.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raft.errors import UserError
from raft.run_directory import Tracker, read_jsonl, write_text

HOSTED = ("wandb", "trackio")
Point = tuple[str, int, dict[str, float]]  # "step" or "iteration", its number, metrics by key


def refuse_absent(names: Iterable[str]) -> None:
    """Raise UserError if a tracker that was asked for is not installed."""
    for name in names:
        if name in HOSTED and find_spec(name) is None:
            raise UserError(f"--report_to {name}: it is not installed; `pip install {name}`, or leave it out.")


def open_trackers(run: Path, names: Sequence[str], config: Mapping[str, Any]) -> list[Tracker]:
    """TensorBoard and the hosted trackers among ``names``, for the process that writes the run directory.

    Args:
        config: the run's settings by group, shown beside its metrics.
    """
    hosted = [HostedTracker(name, run, config) for name in dict.fromkeys(names) if name in HOSTED]
    return [TensorBoard(run), *hosted]


def point_of(record: Mapping[str, Any]) -> Point | None:
    """What of a line of metrics.jsonl can be charted; None where that is nothing. A pair of bounds is two metrics."""
    axis = next((axis for axis in ("step", "iteration") if axis in record), None)
    if axis is None:
        return None
    metrics: dict[str, float] = {}
    for key, value in record.items():
        if "/" not in key or (axis == "iteration" and key.startswith("train/")):
            continue
        if isinstance(value, list) and len(value) == 2:
            metrics |= {f"{key}_{end}": bound for end, bound in zip(("low", "high"), value, strict=True)}
        else:
            metrics[key] = value
    finite = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    return (axis, int(record[axis]), finite) if finite else None


class TensorBoard:
    """Event files in ``tensorboard/``, made anew from metrics.jsonl when a run is resumed: the two always agree."""

    def __init__(self, run: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        self._writer = EventFileWriter(str(run / "tensorboard"))
        if (run / "metrics.jsonl").exists():
            for record in read_jsonl(run / "metrics.jsonl"):
                self._add(record)
        self._writer.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        """Write a line's metrics; whoever watches sees them at once."""
        self._add(record)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, record: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        point = point_of(record)
        if point is not None:
            _, number, metrics = point
            values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
            wall_time = record.get("time", time.time())
            self._writer.add_event(Event(wall_time=wall_time, step=number, summary=Summary(value=values)))


class HostedTracker:
    """W&B or trackio, which has the same interface. Trouble after the start is told once and ends no run."""

    def __init__(self, name: str, run: Path, config: Mapping[str, Any]) -> None:
        self.name, self._module = name, importlib.import_module(name)
        options: dict[str, Any] = {"project": "raft", "name": run.name, "config": dict(config), "resume": "allow"}
        try:
            if name == "wandb":
                options |= {"id": _run_id(run / "wandb_run_id"), "dir": str(run)}
            self._module.init(**options)
            if name == "wandb":  # its own step must rise from call to call; ours are two axes
                for pattern, axis in (("*", "iteration"), ("train/*", "step"), ("eval/*", "step")):
                    self._module.define_metric(pattern, step_metric=axis)
        except Exception as error:  # no account, no network, ...: each has its own class
            raise UserError(f"--report_to {name}: {' '.join(str(error).split())[:300]}") from error
        self._works = True

    def log(self, record: Mapping[str, Any]) -> None:
        """Send a line's metrics, with its step or iteration as one of them."""
        point = point_of(record)
        if point is not None:
            axis, number, metrics = point
            self._attempt("log", {axis: number, **metrics})

    def close(self) -> None:
        self._attempt("finish")

    def _attempt(self, action: str, *arguments: Any) -> None:
        if not self._works:
            return
        try:
            getattr(self._module, action)(*arguments)
        except Exception as error:
            self._works = False
            print(f"{self.name} gets no more metrics of this run: {error}", file=sys.stderr)


def _run_id(file: Path) -> str:
    """The run's identity at W&B, kept beside it so that a resumed run goes on in the same charts."""
    if not file.exists():
        import secrets

        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
