"""Progress bars count by a clock that nobody sets."""

from __future__ import annotations

import io
import time

import pytest

from raft.bars import tqdm


def test_a_clock_that_is_set_back_or_ahead_changes_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    now, passed = time.time(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    with tqdm(total=4, file=io.StringIO(), mininterval=0.1) as bar:
        for shift in (-86400.0, 365 * 86400.0):
            monkeypatch.setattr(time, "time", lambda shift=shift: now + shift)
            passed[0] += 2
            assert bar.update()  # it is drawn
        assert bar.format_dict["elapsed"] == 4
        assert bar.format_dict["n"] == 2
