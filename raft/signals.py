"""SIGTERM and SIGINT end a run between two units of work (a chunk, a batch, a step), with everything kept.

The first signal is only remembered. Who does the work asks for it at the end of a unit, agrees with the other ranks,
and raises :class:`Stopped`. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEATED_WITHIN = 5.0  # seconds in which a launcher passes on a signal that the ranks have got themselves

_number = 0
_since = 0.0
_before: dict[int, Any] = {}


class Stopped(Exception):
    """The run was asked to stop, and has kept everything.

    Attributes:
        code: the exit code, 128 + the signal's number: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


def listen() -> None:
    """From now on, remember the first SIGTERM or SIGINT instead of dying of it."""
    forget()
    for number in SIGNALS:
        try:
            _before[number] = signal.signal(number, _remember)
        except ValueError:  # not in the main thread: its owner decides
            return


def forget() -> None:
    """Handle signals as before :func:`listen`."""
    global _number
    _number = 0
    while _before:
        number, handler = _before.popitem()
        signal.signal(number, handler)


def requested() -> int:
    """Number of the signal that this process got, or 0."""
    return _number


def _remember(number: int, frame: FrameType | None) -> None:
    global _number, _since
    if not _number:
        _number, _since = number, time.monotonic()
        if os.environ.get("RANK", "0") == "0":  # a bare write: printing is not safe within a signal handler
            text = f"\n{signal.Signals(number).name}: stopping after the chunk, batch or step at hand; again: at once\n"
            os.write(2, text.encode())
    elif time.monotonic() - _since > (REPEATED_WITHIN if "TORCHELASTIC_RUN_ID" in os.environ else 0.0):
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
