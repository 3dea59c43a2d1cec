"""Units of work that ranks share: a finished one is written down, and after a restart it is read, not done again.

A unit (a chunk of responses, a batch of scores) is a pure function of what it is keyed by: the same inputs give the
same result whoever works on it and whenever. So a run that was killed is started again from its last checkpoint,
takes the same way, and finds its finished units here.

A journal is a directory with one file a rank and piece of work, one line a unit: checksum, number, key, value. A line
that was cut off is no line. Nothing is lost with a line but the time to do its unit again, so lines go to the disk
at most once a second; what a checkpoint depends on is in its manifest.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from raft import distributed, signals
from raft.errors import UserError
from raft.threads import Shared, in_threads

T = TypeVar("T")
_current: ContextVar[Journal | None] = ContextVar("journal", default=None)


def share(
    name: str,
    num_units: int,
    work: Callable[[int], Any],
    *,
    key: Callable[[int], Any],
    on_done: Callable[[int], object] = lambda number: None,
    num_threads: int = 1,
) -> list[Any]:
    """Do units of work on all ranks together; a rank that is ready takes the next one.

    Args:
        name: of the piece of work, unique in the run.
        work: number of a unit -> its result, a JSON value.
        key: number of a unit -> everything that determines its result, a JSON value.
        on_done: told the number of each unit that this rank has done or found.
        num_threads: units that a rank has under way at once; 1 stays in this thread.

    Returns:
        On every rank, all results by their numbers.

    Raises:
        Stopped: on all ranks, once each has finished its unit, if one of them was asked to stop.
        UserError: on all ranks, what ``work`` raised on any of them.
    """
    journal = _current.get()
    found: dict[int, Any] = {}
    if journal:
        found = journal.read(name, num_units, key)
        distributed.barrier()  # nobody writes before all have read: they agree on what is missing
    for number in found:
        on_done(number)
    missing = [number for number in range(num_units) if number not in found]
    if missing and journal and journal.complete:
        raise _incomplete(journal, name)
    mine: dict[int, Any] = {}
    places, lock = Shared(distributed.take_chunks(name, len(missing))), threading.Lock()

    def do(number: int) -> None:
        digest = _digest(name, key(number))  # before the work, which may be a user's code and change what it is given
        value = work(number)
        with lock:
            mine[number] = value
            if journal:
                journal.write(name, number, digest, value)
            on_done(number)
            if signals.requested():
                places.close()
                distributed.end_chunks(name)

    error: UserError | None = None
    try:
        in_threads(lambda place: do(missing[place]), places, num_threads)
    except UserError as raised:
        error = raised
    finally:
        if journal:
            journal.close()
    results = found | _gathered(mine, error)
    assert len(results) == num_units, f"{name}: every unit is done exactly once"
    return [results[number] for number in range(num_units)]


def _gathered(mine: dict[int, Any], error: UserError | None) -> dict[int, Any]:
    """The results of all ranks by number; or what failed on one of them, or that one was asked to stop, on all."""
    parts = distributed.all_gather((mine, error, signals.requested()))
    for _, failure, _ in parts:
        if failure is not None:
            raise failure
    if stop := max(signal for _, _, signal in parts):
        raise signals.Stopped(stop)
    return {number: value for part, _, _ in parts for number, value in part.items()}


def in_order(units: Sequence[Sequence[int]], results: Sequence[Sequence[Any]]) -> list[Any]:
    """Results by unit as a list by item, where a unit is the indices of its items."""
    found = {i: one for unit, part in zip(units, results, strict=True) for i, one in zip(unit, part, strict=True)}
    return [found[i] for i in range(len(found))]


def once(name: str, work: Callable[[], T]) -> T:
    """The result of something that all ranks do together, a JSON value: kept, and read after a restart."""
    journal = _current.get()
    if journal is None:
        return work()
    found: dict[int, T] = distributed.broadcast(journal.read(name, 1, lambda _: None))
    if found:
        return found[0]
    if journal.complete:
        raise _incomplete(journal, name)
    value = work()
    if distributed.is_main():
        journal.write(name, 0, _digest(name, None), value)
        journal.close()
    return value


def forget(name: str) -> None:
    """Drop the finished units of one piece of work, on all ranks together: a restart does it again."""
    if journal := _current.get():
        distributed.barrier()  # all have read what they need
        if distributed.is_main():
            for path in journal.files_of(name):
                path.unlink()


@contextmanager
def keeping(journal: Journal) -> Iterator[Journal]:
    """Within this, units that are shared are kept."""
    token = _current.set(journal)
    try:
        yield journal
    finally:
        _current.reset(token)


class Journal:
    """Finished units of a run.

    Attributes:
        directory: on a file system that all ranks see.
        complete: whether every unit that is asked for has to be here, because the model that did them has changed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.complete = False
        self._file: Any = None
        self._synced = 0.0

    def read(self, name: str, num_units: int, key: Callable[[int], Any]) -> dict[int, Any]:
        """Values of finished units by their numbers; those of another key or with a damaged line are not there."""
        found: dict[int, Any] = {}
        for path in self.files_of(name):
            for line in path.read_bytes().splitlines():
                unit = _parse(line)
                if unit and unit[0] < num_units and unit[1] == _digest(name, key(unit[0])):
                    found[unit[0]] = unit[2]
        return found

    def write(self, name: str, number: int, digest: str, value: Any) -> None:
        """Add a finished unit; it is there after this process is killed, and a second later after power is lost.

        Args:
            digest: see :func:`_digest`.
        """
        if self._file is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / f"{_file_name(name)}.rank{distributed.rank()}.jsonl"
            # Unbuffered: a line is one call to the system. It starts anew after one that was cut off.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            if self._file.tell():
                self._file.write(b"\n")
        text = json.dumps([number, digest, value]).encode()
        line = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        if time.monotonic() - self._synced > 1.0:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything onto the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def files(self) -> list[Path]:
        """What a checkpoint within an iteration depends on."""
        return sorted(self.directory.glob("*.jsonl"))

    def files_of(self, name: str) -> list[Path]:
        """Files with units of one piece of work."""
        return sorted(self.directory.glob(f"{_file_name(name)}.rank*.jsonl"))

    def clear(self) -> None:
        """Forget all units, once a checkpoint stands after them."""
        if distributed.is_main():
            shutil.rmtree(self.directory, ignore_errors=True)
        distributed.barrier()


def _incomplete(journal: Journal, name: str) -> UserError:
    return UserError(
        f"--resume: {journal.directory} lacks a part of {name} that the last checkpoint was trained on: prompts or "
        "the code have changed since. Remove that checkpoint, its name has a dash, to go on from the one before it."
    )


def _file_name(name: str) -> str:
    """Another one for every name: what no file name has is replaced, and names that look alike then are still apart."""
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', name)}.{xxhash.xxh32_hexdigest(name.encode())}"


def _digest(name: str, key: Any) -> str:
    """Of the piece of work and of what determines a unit's result."""
    return str(xxhash.xxh3_64_hexdigest(json.dumps([name, key], sort_keys=True, default=str).encode()))


def _parse(line: bytes) -> tuple[int, str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if not text or xxhash.xxh3_64_hexdigest(text).encode() != checksum:
        return None
    number, key, value = json.loads(text)
    return number, key, value
