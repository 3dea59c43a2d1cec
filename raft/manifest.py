"""What a directory has to hold to be whole: a list of its files with sizes and checksums, written last."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from raft import distributed, json_file
from raft.errors import UserError
from raft.run_directory import sync_directory, write_json

NAME = "manifest.json"
_BLOCK = 1 << 24


def write_manifest(directory: Path, others: Sequence[Path] = ()) -> None:
    """Put every file onto the disk and list it, on all ranks together: each of them takes its part of the files.

    Args:
        others: files elsewhere that the directory is of no use without; they are listed relative to it.
    """
    inside = sorted(path for path in directory.rglob("*") if path.is_file())
    names = [os.path.relpath(path, directory) for path in [*inside, *others]]
    distributed.barrier()  # all have listed the same files before anything is added
    mine = {name: _entry(directory / name) for name in names[distributed.rank() :: distributed.world_size()]}
    files = {name: entry for part in distributed.all_gather(mine) for name, entry in part.items()}
    if distributed.is_main():
        for folder in {path.parent for path in inside}:
            sync_directory(folder)
        write_json(directory / NAME, {"files": {name: files[name] for name in names}})
    distributed.barrier()


def find_fault(directory: Path) -> str | None:
    """What is wrong with a directory that has a manifest, or None; checked by all ranks together."""
    try:
        files = json_file.read_object(directory / NAME).get("files")
    except UserError:
        files = None
    if not isinstance(files, dict):
        return f"{NAME} can not be read"
    names = sorted(files)
    mine = [_fault(directory / name, files[name]) for name in names[distributed.rank() :: distributed.world_size()]]
    return next((fault for part in distributed.all_gather(mine) for fault in part if fault), None)


def _entry(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            digest.update(block)
        return {"bytes": file.tell(), "xxh3_64": digest.hexdigest()}


def _fault(path: Path, expected: Any) -> str | None:
    if not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
        return f"{path.name}: no size in the manifest"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a device or a pipe may never end
            return f"{path.name} is no file"
        if path.stat().st_size != expected["bytes"]:
            return f"{path.name} has {path.stat().st_size} bytes, expected {expected['bytes']}"
        return None if _entry(path) == expected else f"{path.name} has another checksum"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    except ValueError:  # a zero byte, half of a surrogate pair
        return f"{NAME} lists a name that no file can have"
