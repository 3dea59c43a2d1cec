"""The run directory: everything a run leaves behind, each file whole or not there.

    config.yaml  environment.json  metrics.jsonl  summary.json  report.html
    iterations/0003/{samples.jsonl, selected.jsonl, metrics.json, drift.json}   held_out/0003.jsonl
    checkpoints/  best/  final/  plots/*.png  tensorboard/

Only rank 0 writes; the other ranks may call the same functions, which then do nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from raft import __version__
from raft.errors import UserError

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "datasets", "numpy", "safetensors", "tokenizers")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: aside, flushed to disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document whole or not at all. NaN is written as null."""
    write_text(path, json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def json_safe(value: Any) -> Any:
    """The same value with what JSON has no word for (NaN, infinities) as null and numpy numbers as plain ones."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """Fill a directory aside and put it in place in one rename; an older one of that name is replaced last.

    Yields:
        An empty directory to write into. After an exception nothing has changed.
    """
    aside = directory.with_name(directory.name + ".part")
    old = directory.with_name(directory.name + ".old")
    if old.exists() and not directory.exists():
        os.replace(old, directory)  # killed between the two renames below
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for path in aside.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if directory.exists():
        os.replace(directory, old)
    os.replace(aside, directory)
    shutil.rmtree(old, ignore_errors=True)


class Tracker(Protocol):
    """Takes every line of metrics.jsonl as it is written: see ``raft.reports.trackers``."""

    def log(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunDirectory:
    """Where one run writes, and what it has written so far."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.trackers: list[Tracker] = []

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a run may take this directory; changes nothing.

        Raises:
            UserError: if there is another run in it and neither --resume nor --overwrite_output_dir was given, or
                if --resume was given and there is none.
        """
        if not self.writes:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir: {self.path} is a file, expected a directory.")
        has_run = (self.path / "config.yaml").exists()
        if resume and not has_run:
            raise UserError(f"--resume: there is no run in {self.path} (no config.yaml).")
        if self.path.exists() and any(self.path.iterdir()) and not resume:
            if not overwrite:
                raise UserError(
                    f"--output_dir: {self.path} is not empty. Continue that run with --resume true, replace it with "
                    "--overwrite_output_dir true, or name another directory."
                )
            if not has_run:
                raise UserError(
                    f"--overwrite_output_dir: {self.path} holds no run of this toolkit (no config.yaml); not removed."
                )

    def start(self, config_yaml: str, *, resume: bool, overwrite: bool) -> None:
        """Take the directory for this run: an earlier run in it is removed, unless it is resumed.

        Raises:
            UserError: as :meth:`check`.
        """
        if not self.writes:
            return
        self.check(resume=resume, overwrite=overwrite)
        if self.path.exists() and not resume:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", config_yaml)
        write_json(self.path / "environment.json", environment())

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, with the wall-clock time in seconds since 1970, and tell the trackers."""
        if self.writes:
            record = json_safe({"time": round(time.time(), 3), **metrics})
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            for tracker in self.trackers:
                tracker.log(record)

    def close(self) -> None:
        """Close the trackers; nothing is logged afterwards."""
        while self.trackers:
            self.trackers.pop().close()

    def truncate_log(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again."""
        path = self.path / "metrics.jsonl"
        if self.writes and path.exists():
            write_jsonl(path, [row for row in read_jsonl(path) if keep(row)])

    def write_json(self, name: str, value: object) -> None:
        """Write ``name`` below the run directory, on rank 0."""
        if self.writes:
            write_json(self.path / name, value)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``name`` below the run directory, on rank 0."""
        if self.writes:
            write_jsonl(self.path / name, rows)

    def iteration(self, iteration: int) -> str:
        """Name of an iteration's folder below the run directory."""
        return f"iterations/{iteration:04d}"


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, commit, hardware, command line."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "raft": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "commit": commit.stdout.strip() or None,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "arguments": sys.argv[1:],
    }
