"""One run at a time in a directory; a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raft import lock
from raft.errors import UserError
from raft.run_directory import RunDirectory
from tests.conftest import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from raft import lock
lock.occupy(Path(sys.argv[1]))
print("occupied", flush=True)
time.sleep(60)
"""


def occupied_by_another(directory: Path) -> subprocess.Popen[str]:
    """A process that has the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, directory], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "occupied\n"
    return process


def test_a_directory_in_use_is_refused_until_its_process_is_dead(tmp_path: Path) -> None:
    with occupied_by_another(tmp_path) as holder:
        expected = rf"--output_dir: {tmp_path} is in use by process {holder.pid} on {socket.gethostname()}, since 20"
        for take in (
            lambda: lock.occupy(tmp_path),
            lambda: RunDirectory(tmp_path).check(resume=False, overwrite=True),
            lambda: RunDirectory(tmp_path).start("", resume=False, overwrite=False),
        ):
            with pytest.raises(UserError, match=expected):
                take()
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    lock.refuse_occupied(tmp_path)
    lock.occupy(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    lock.occupy(tmp_path)  # not in its own way
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "pid", "free"),
    [("elsewhere", 1, False), ("here", 1, False), ("here", 2**22 + 1, True), ("here", "me", True)],
)
def test_where_the_file_system_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, pid: int | str, free: bool
) -> None:
    """A process on this host is looked for; whether one on another host is alive nobody can tell."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    holder = {"host": socket.gethostname() if host == "here" else host, "pid": os.getpid() if pid == "me" else pid}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    if free:
        lock.occupy(tmp_path)
    else:
        with pytest.raises(UserError, match=r"in use by process 1 on .* \(if it is gone, remove .*run.lock\)"):
            lock.occupy(tmp_path)


def test_a_directory_that_can_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/sys is read-only, or refuses new files, for everybody."""
    with pytest.raises(UserError, match=r"--output_dir: /sys/run can not be written to \(.+\)\."):
        RunDirectory("/sys/run").check(resume=False, overwrite=False)
    with pytest.raises(UserError, match=r"--output_dir: .* is a file"):
        RunDirectory(__file__).check(resume=False, overwrite=False)
