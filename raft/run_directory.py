"""The run directory: everything a run leaves behind, each file whole or not there.

    config.yaml  environment.json  metrics.jsonl  summary.json  report.html
    iterations/0003/{samples.jsonl, selected.jsonl, metrics.json, drift.json}   held_out/0003.jsonl
    checkpoints/  best/  final/  plots/*.png  tensorboard/

Only rank 0 writes; the other ranks may call the same functions, which then do nothing. (Every rank writes its part of
a checkpoint, and its finished units into ``journal/``: see ``raft.journal``.) ``run.lock`` is there while a run is.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from raft import __version__, json_file, lock
from raft.errors import UserError
from raft.terminal import without_passwords

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "datasets", "numpy", "safetensors", "tokenizers", "vllm")

ENVIRONMENT = "environment.json"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: aside, flushed to disk, renamed. What is no file, as /dev/null, stays."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Put a directory onto the disk: a renamed file has its new name there only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def noticing_full_disk(path: Path) -> Iterator[None]:
    """Libraries have errors of their own for a full disk; make it an OSError that says so."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # torch.save says "unexpected pos 704 vs 598".
        if "no space left" in str(error).lower() or shutil.disk_usage(path).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def write_json(path: Path, value: object) -> None:
    """Write one JSON document whole or not at all. NaN is written as null."""
    write_text(path, json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json_line(row) + "\n" for row in rows))


def json_line(row: Mapping[str, Any], *, ensure_ascii: bool = False) -> str:
    """A JSON object on one line. NaN is written as null."""
    try:  # most rows are as JSON wants them, and looking at every number first takes several times as long
        return json.dumps(row, ensure_ascii=ensure_ascii, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(json_safe(row), ensure_ascii=ensure_ascii, allow_nan=False)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line. Raises UserError naming file and line for anything else."""
    return [row for _, row in json_file.read_lines(path)]


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
        with noticing_full_disk(directory.parent):
            yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for path in aside.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_directory(aside)
    if directory.exists():
        os.replace(directory, old)
    os.replace(aside, directory)
    sync_directory(directory.parent)
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
        self.resumes = False  # an earlier run in it is continued
        self.started_with: dict[str, int] = {}  # what its optimizer steps were made of: see raft.resuming
        self.inputs: dict[str, str] = {}  # what it was made from: see raft.inputs
        self.forgets_journal = False  # a resumed run whose settings have changed can not use what it had begun

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a run may take this directory; changes nothing.

        Raises:
            UserError: if there is another run in it and neither --resume nor --overwrite_output_dir was given, if
                --resume was given and there is none, if another process is writing there, or if this one can not.
        """
        if not self.writes:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir: {self.path} is a file, expected a directory.")
        if resume and not self.has_run:
            raise UserError(f"--resume: there is no run in {self.path} (no config.yaml).")
        lock.refuse_occupied(self.path)
        self._check_writable()
        if self._holds_something() and not resume:
            if not overwrite:
                raise UserError(
                    f"--output_dir: {self.path} is not empty. Continue that run with --resume true, replace it with "
                    "--overwrite_output_dir true, or name another directory."
                )
            if not (self.has_run and self._has_environment()):
                raise UserError(
                    f"--overwrite_output_dir: {self.path} holds no run of this toolkit (no config.yaml with an "
                    f"{ENVIRONMENT} of it); not removed."
                )

    @property
    def has_run(self) -> bool:
        """Whether a run was started in this directory."""
        return (self.path / "config.yaml").exists()

    def _has_environment(self) -> bool:
        """Whether a run has recorded its environment here: many projects have a config.yaml, none has this."""
        try:
            return "raft" in json_file.read_object(self.path / ENVIRONMENT)
        except UserError:
            return False

    def _holds_something(self) -> bool:
        """Whether there is more than a start that was killed leaves."""
        own = {lock.NAME, f"{ENVIRONMENT}.part", "config.yaml.part"}
        own |= {ENVIRONMENT} if self._has_environment() else set()
        return self.path.exists() and any(path.name not in own for path in self.path.iterdir())

    def _check_writable(self) -> None:
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise UserError(f"--output_dir: {self.path} can not be written to ({error.strerror}).") from None

    def start(self, config_yaml: str, *, resume: bool, overwrite: bool) -> None:
        """Take the directory for this run: an earlier run in it is removed, unless it is resumed.

        Raises:
            UserError: as :meth:`check`.
        """
        if not self.writes:
            return
        self.check(resume=resume, overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        lock.occupy(self.path)
        if self.forgets_journal:  # and the checkpoints that are of no use without
            for begun in (self.path / "journal", *self.path.glob("checkpoints/*-*")):
                shutil.rmtree(begun, ignore_errors=True)
        if not resume:
            self._clear()
        write_json(self.path / ENVIRONMENT, environment() | {"started_with": self.started_with, "inputs": self.inputs})
        write_text(self.path / "config.yaml", config_yaml)

    def _clear(self) -> None:
        """Remove an earlier run, and what it is known by last: a start that is killed here can be made again."""
        last = {"config.yaml": 1, ENVIRONMENT: 2}
        for path in sorted(self.path.iterdir(), key=lambda one: last.get(one.name, 0)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != lock.NAME:
                path.unlink()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, with the wall-clock time in seconds since 1970, and tell the trackers."""
        if self.writes:
            record = json_safe({"time": round(time.time(), 3), **metrics})
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            for tracker in self.trackers:
                tracker.log(record)

    def close(self) -> None:
        """The run is complete: close the trackers, and let others have the directory. Nothing is logged afterwards."""
        while self.trackers:
            self.trackers.pop().close()
        if self.writes:
            lock.release(self.path)

    def log_length(self) -> int:
        """Bytes of metrics.jsonl so far, all of them on the disk."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return 0
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def truncate_log(self, length: int) -> None:
        """Cut metrics.jsonl to a length it has had: a resumed run will write the rest again."""
        path = self.path / "metrics.jsonl"
        if self.writes and path.exists() and path.stat().st_size > length:
            os.truncate(path, length)

    def forget_after(self, iteration: int) -> None:
        """Remove what later iterations have left: a resumed run does them again, or comes to another end."""
        for path in [*self.path.glob("iterations/*"), *self.path.glob("held_out/*.jsonl")]:
            if path.stem.isdecimal() and int(path.stem) > iteration:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

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
        "arguments": [without_passwords(argument) for argument in sys.argv[1:]],
    }
