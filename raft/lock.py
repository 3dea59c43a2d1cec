"""One run at a time in a directory: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path

from raft import json_file
from raft.errors import UserError

NAME = "run.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def refuse_occupied(directory: Path) -> None:
    """Refuse a directory that another process is writing to; changes nothing.

    Raises:
        UserError: naming the host and the process.
    """
    path = directory / NAME
    if path.exists():
        os.close(_lock(path))


def occupy(directory: Path) -> None:
    """Take a directory for this process, until :func:`release` or its end.

    Raises:
        UserError: if another process has it.
    """
    path = directory / NAME
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    descriptor = _lock(path)  # stays open: closing it gives the lock back
    os.ftruncate(descriptor, 0)
    os.write(descriptor, (json.dumps(holder) + "\n").encode())


def release(directory: Path) -> None:
    """Remove the lock of this process."""
    (directory / NAME).unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """An open descriptor of the locked file. A process does not stand in its own way; a dead one in nobody's."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except IsADirectoryError:
        raise UserError(f"--output_dir: {path} is a directory, expected the lock of a run or nothing.") from None
    try:
        # By fcntl rather than flock: it reaches over NFS, and processes forked from this one do not keep it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(path)
        if error.errno not in _UNSUPPORTED or _seems_alive(holder):
            os.close(descriptor)
            raise UserError(
                f"--output_dir: {path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}, since "
                f"{holder.get('since')}. Name another directory, or stop that run"
                + (f" (if it is gone, remove {path})." if error.errno in _UNSUPPORTED else ".")
            ) from None
    return descriptor


def _holder(path: Path) -> dict[str, object]:
    try:
        return json_file.read_object(path)
    except UserError:
        return {}


def _seems_alive(holder: dict[str, object]) -> bool:
    """Where the file system knows no locks: whether the process is there; on another host nobody can tell."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return bool(holder)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid != os.getpid()
