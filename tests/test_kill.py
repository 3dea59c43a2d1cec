"""The kill test in small: six kills in two runs; each is asked to stop, and one loses one of its two processes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.same_run import differences, same_value
from tests.processes import run_forked


def test_runs_that_were_killed_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    program = ("-m", "benchmarks.kill_test")
    done = run_forked(program, "--quick", "--output", tmp_path / "result.json", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["killed"], result["stopped"], result["lost_a_process"]) == (6, 2, 1)
    assert len(result["killed_by_phase"]) >= 3
    assert [one["differences"] for one in result["runs"]] == [[], []]


def test_the_comparison_finds_what_differs(tmp_path: Path) -> None:
    """All but what a clock says."""
    one, other = tmp_path / "one", tmp_path / "other"
    for run, value, clock in ((one, 1.0, 1), (other, 1.0, 2)):
        (run / "checkpoints/000001").mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json.dumps({"time": clock, "seconds/sampling": clock, "loss": value}))
        (run / "summary.json").write_text(json.dumps({"reward": value, "seconds": {"total": clock}}))
        (run / "report.html").write_text(str(clock))
        torch.save({"weight": torch.full((3,), value), "step": 1}, run / "checkpoints/000001/state.pt")
    assert differences(one, other) == []
    (other / "metrics.jsonl").write_text(json.dumps({"time": 1, "loss": 1.0000001}))
    (other / "summary.json").write_text(json.dumps({"reward": 2.0}))
    torch.save({"weight": torch.tensor([1.0, 1.0, 1.0000001]), "step": 1}, other / "checkpoints/000001/state.pt")
    assert differences(one, other) == ["checkpoints/000001/state.pt", "metrics.jsonl", "summary.json"]
    (other / "extra").touch()
    assert differences(one, other) == ["only in one: extra"]
    assert not same_value({"a": [torch.zeros(1)]}, {"a": [torch.zeros(1, dtype=torch.float64)]})
