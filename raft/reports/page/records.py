"""What a run directory says of its run, read with tolerance: any file may be missing, any key unknown or absent.

Nothing here needs a model, a tokenizer or the machine of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import json_file
from raft.errors import UserError
from raft.reports.curves import Metrics, read_metrics

Row = dict[str, Any]

TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Records:
    """One run.

    Attributes:
        path: its directory.
        name: what it is called on the page.
        config: its settings, by flag name, without groups.
        environment: versions, commit, hardware, command line.
        summary: its result; empty while the run goes on.
        metrics: by iteration and by optimizer step.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Metrics

    @property
    def command(self) -> str:
        """Which command made it: align, sft, reward, or "" where that can not be told."""
        if "num_raft_iteration" in self.config or any(self.path.glob("iterations/*")):
            return "align"
        arguments = self.environment.get("arguments")
        return str(arguments[0]) if isinstance(arguments, list) and arguments else ""

    def sample_files(self) -> dict[int, Path]:
        """Iteration -> its samples.jsonl."""
        return _numbered(self.path.glob("iterations/*/samples.jsonl"), lambda path: path.parent.name)

    def held_out_files(self) -> dict[int, Path]:
        """Iteration (0 is before training) -> the held-out responses after it."""
        return _numbered(self.path.glob("held_out/*.jsonl"), lambda path: path.stem)

    def drift_files(self) -> dict[int, Path]:
        """Iteration -> what the drift watch found."""
        return _numbered(self.path.glob("iterations/*/drift.json"), lambda path: path.parent.name)


def read_records(path: str | Path, name: str = "") -> Records:
    """Read a run directory.

    Raises:
        UserError: if the directory is not there, is no run's, or a file in it is not what its name says.
    """
    path = Path(path)
    if not any((path / trace).is_file() for trace in TRACES):
        found = "holds no run" if path.is_dir() else "is not there"
        raise UserError(f"{path} {found}, expected a run directory (with one of {', '.join(TRACES)}).")
    return Records(
        path=path,
        name=name or path.resolve().name,
        config=_settings(path / "config.yaml"),
        environment=_mapping(path / "environment.json"),
        summary=_mapping(path / "summary.json"),
        metrics=read_metrics(path / "metrics.jsonl"),
    )


def distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart; a path given twice is numbered."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file. Raises UserError naming file and line for one that is no JSON object."""
    return (row for _, row in json_file.read_lines(path))


def read_alarms(records: Records) -> list[Row]:
    """The drift watch's alarms of every iteration, each with its ``iteration``, in their order."""
    return [
        {**row, "iteration": iteration}
        for iteration, path in records.drift_files().items()
        for row in _rows(_mapping(path).get("alarms"))
    ]


def read_risen(records: Records) -> list[Row]:
    """What else had become more frequent at the drift watch's last look, without being an alarm."""
    files = list(records.drift_files().values())
    return _rows(_mapping(files[-1]).get("risen")) if files else []


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _numbered(paths: Iterator[Path], name_of: Any) -> dict[int, Path]:
    """Files by the number in their names; others, such as half-written ones, are passed over."""
    found = {name_of(path): path for path in paths}
    return {int(name): found[name] for name in sorted(found, key=lambda name: (len(name), name)) if name.isdecimal()}


def _mapping(path: Path) -> dict[str, Any]:
    return json_file.read_object(path) if path.is_file() else {}


def _settings(path: Path) -> dict[str, Any]:
    """config.yaml without its groups: flag names are unique in a command."""
    from raft.arguments import load_yaml

    if not path.is_file():
        return {}
    settings: dict[str, Any] = {}
    for key, value in load_yaml(str(path)).items():
        settings |= value if isinstance(value, dict) else {key: value}
    return settings
