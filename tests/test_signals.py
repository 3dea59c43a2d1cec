"""The first SIGTERM or SIGINT is remembered, a second one ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from raft import cli, signals
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _deaf() -> Iterator[None]:
    yield
    signals.forget()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    signals.listen()
    assert signals.requested() == 0
    signal.raise_signal(number)
    assert signals.requested() == number
    assert f"{number.name}: stopping after" in capfd.readouterr().err
    signals.forget()
    assert signals.requested() == 0
    assert signal.getsignal(number) is before


WORKING = """
import time
from raft import signals
signals.listen()
print("listening", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    command = [sys.executable, "-c", WORKING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        while "SIGTERM" not in process.stderr.readline():  # it has got the first one
            pass
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=10) == -second


def test_what_a_launcher_passes_on_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the ranks and torchrun, which sends them SIGTERM in turn."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    signals.listen()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert signals.requested() == signal.SIGINT
    killed: list[int] = []
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setattr(time, "monotonic", lambda: signals._since + signals.REPEATED_WITHIN + 1)
    signal.raise_signal(signal.SIGTERM)
    assert killed == [signal.SIGTERM]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_is_that_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def stopped(config: object) -> None:
        signals.listen()
        raise signals.Stopped(number)

    before = signal.getsignal(number)
    monkeypatch.setattr("raft.tools.plot.main", stopped)
    assert cli.main(["plot", "anywhere"]) == code
    assert "stopped by SIG" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EDQUOT", "EISDIR", "EACCES"])
def test_a_full_disk_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import errno
    import os

    number = getattr(errno, name)

    def full(config: object) -> None:
        raise OSError(number, os.strerror(number), "run/metrics.jsonl")

    monkeypatch.setattr("raft.tools.plot.main", full)
    assert cli.main(["plot", "--run_dir", "anywhere"]) == 2
    said = capsys.readouterr().err
    expected = f"raft plot: error: {os.strerror(number)} (run/metrics.jsonl). A run continues with --resume"
    assert said.startswith(expected)
    assert said.count("\n") == 1
