"""Two ranks under torchrun: told to stop, or with one of them dead, they end in time, and no finished unit is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT, run_ranks

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from raft import distributed, signals
from raft.journal import Journal, keeping, share

directory, what = Path(sys.argv[1]), sys.argv[2]
distributed.initialize()

def work(number):
    if (number, what) in ((4, "stopped"), (8, "bereaved")):
        (directory / what).write_text(str(time.monotonic()))
    if number == 4 and what == "stopped":
        os.kill(os.getppid(), signal.SIGTERM)  # the launcher, as a scheduler does
        while not signals.requested():
            time.sleep(0.01)
    if number == 8 and what == "bereaved":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (directory / f"{number}-{what}").touch()
    return number ** 2

signals.listen()
code = 0
with keeping(Journal(directory / "journal")):
    try:
        found = share("a", 16, work, key=lambda number: number)
        (directory / f"found-{distributed.rank()}").write_text(json.dumps(found))
    except signals.Stopped as stop:
        code = stop.code
        (directory / f"code-{distributed.rank()}").write_text(str(code))
distributed.shutdown()
sys.exit(code)
"""


def launch(directory: Path, what: str) -> int:
    """Exit code of torchrun, which has a minute from when one of its ranks is disturbed."""
    script = directory / "rank.py"
    script.write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, str(script), str(directory), what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300).returncode
    disturbed = directory / what
    assert not disturbed.exists() or time.monotonic() - float(disturbed.read_text()) < 60
    return code


def test_ranks_under_torchrun_end_in_time_and_lose_nothing(tmp_path: Path) -> None:
    assert launch(tmp_path, "stopped") != 0
    assert [(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert 5 <= len(list(tmp_path.glob("*-stopped"))) <= 6  # 0 to 4, and what the other rank was at
    assert launch(tmp_path, "bereaved") != 0
    assert (tmp_path / "bereaved").exists()
    assert not list(tmp_path.glob("found-*"))
    run_ranks(RANK, 2, tmp_path, "whole")
    squares = [number**2 for number in range(16)]
    assert [json.loads((tmp_path / f"found-{rank}").read_text()) for rank in (0, 1)] == [squares] * 2
    times_done = Counter(int(path.name.split("-")[0]) for path in tmp_path.glob("[0-9]*-*"))
    assert times_done == dict.fromkeys(range(16), 1)
