"""The drift watch of a run: reads the samples of its iterations, writes ``iterations/0003/drift.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft import json_file
from raft.reports.drift import DriftConfig, Watch
from raft.reports.drift_records import Records
from raft.reports.drift_text import describe
from raft.run_directory import RunDirectory


class RunWatch:
    """Looks at a run, iteration by iteration, from its files alone: during the run, after it, and after a resume."""

    def __init__(self, directory: RunDirectory, config: DriftConfig) -> None:
        self.directory, self.config = directory, config
        self.watch: Watch | None = None

    def look(self, iteration: int) -> dict[str, Any]:
        """Catch up to an iteration, write its ``drift.json`` and give what is in it."""
        if self.watch is None or self.watch.iteration >= iteration:
            before = self.directory.path / "held_out/0000.jsonl"
            self.watch = Watch(self.config, Records.read(before) if before.exists() else None)
        while self.watch.iteration < iteration:
            report = self.watch.look(Records.read(samples_file(self.directory.path, self.watch.iteration + 1)))
        self.directory.write_json(f"{self.directory.iteration(iteration)}/drift.json", report)
        return report

    def metrics_and_text(self, iteration: int) -> tuple[dict[str, float], str]:
        """What ``metrics.jsonl`` and the screen get; nothing on a rank that writes nothing, or when switched off."""
        if not self.directory.writes or not self.config.drift_false_alarms:
            return {}, ""
        report = self.look(iteration)
        alarms = report["alarms"]
        metrics = {
            "drift/num_alarms": len(alarms),
            "drift/num_new_alarms": sum(alarm["first_iteration"] == iteration for alarm in alarms),
            "drift/largest_ratio": max((alarm["ratio"] for alarm in alarms), default=1.0),
        }
        return metrics, describe(report)


def drift_summary(run: Path, num_iterations: int) -> dict[str, Any]:
    """``iterations`` with an alarm, and the ``alarms`` of the last of them: what they are of, shares, since when."""
    files = {i: run / f"iterations/{i:04d}/drift.json" for i in range(1, num_iterations + 1)}
    found = {i: json_file.read_object(path)["alarms"] for i, path in files.items() if path.exists()}
    iterations = [i for i, alarms in found.items() if alarms]
    keys = ("kind", "feature", "share_start", "share_now", "first_iteration")
    last = found[iterations[-1]] if iterations else []
    return {"iterations": iterations, "alarms": [{key: alarm[key] for key in keys} for alarm in last]}


def samples_file(run: Path, iteration: int) -> Path:
    """The samples of an iteration."""
    return run / f"iterations/{iteration:04d}/samples.jsonl"
