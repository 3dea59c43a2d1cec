"""Peaks, verdicts and times, by hand."""

from __future__ import annotations

import pytest

from raft.functional.engine_memory import EngineBytes
from raft.planning.estimate import SET_UP, Disk, Phase, Plan, Work, training_phases, verdict
from raft.planning.passes import Usage
from raft.planning.probe import totals

ENGINE = EngineBytes(100, 10, 20, 5, first_pass=0, reducing=50, stepping=40, gathered=0, building=0)


def a_plan(*phases: Phase) -> Plan:
    return Plan([], {}, phases, Disk({"final": 3}, passing=4), Work({}, {}, 1, "step"))


def test_a_gpu_gives_back_what_a_phase_frees_and_a_cpu_keeps_it() -> None:
    plan = a_plan(Phase("sampling", 100, Usage(live=30, resident=35, kept=20)), Phase("scoring", 100, Usage(5, 6, 5)))
    assert plan.peaks(on_gpu=True) == {"sampling": 130, "scoring": 105}
    assert plan.peaks(on_gpu=False) == {"sampling": 135 + SET_UP, "scoring": 121 + SET_UP}
    assert plan.peak(on_gpu=True) == 130


def test_training_peaks_where_gradients_are_reduced_or_activations_are_large() -> None:
    few = Usage(live=30, resident=30, kept=8, gradients=20, live_alone=25, resident_alone=25)
    many = Usage(live=70, resident=75, kept=8, gradients=20, live_alone=60, resident_alone=65)
    assert a_plan(*training_phases(ENGINE, 7, few)).peaks(on_gpu=True) == {"training": 135 + 7 + 50}
    assert a_plan(*training_phases(ENGINE, 7, many)).peaks(on_gpu=True) == {"training": 135 + 7 + 70}
    assert a_plan(*training_phases(ENGINE, 7, few)).peaks(on_gpu=False) == {"training": 135 + 7 + 50 + 8 + SET_UP}


def test_earlier_micro_batches_add_their_gradients() -> None:
    accumulating = EngineBytes(100, 10, 20, 5, first_pass=20, reducing=30, stepping=40, gathered=0, building=0)
    usage = Usage(live=70, resident=75, kept=8, gradients=20, live_alone=60, resident_alone=65)
    assert a_plan(*training_phases(accumulating, 0, usage)).peaks(on_gpu=True) == {"training": 135 + 20 + 60}


@pytest.mark.parametrize(("needed", "said"), [(85, "fits"), (86, "tight"), (100, "tight"), (101, "does not fit")])
def test_the_verdict(needed: int, said: str) -> None:
    assert verdict(needed, 100) == said


def test_the_disk_holds_the_old_beside_the_new() -> None:
    assert a_plan(Phase("loading", 1)).disk.most == 7


def test_seconds_of_a_run_are_those_of_its_units() -> None:
    work = Work({"loading": 1, "chunk": 2}, {"chunk": 3, "micro-batch": 4, "step": 2}, 5, "iteration")
    found = totals(work, {"loading": 7.0, "chunk": 10.0, "micro-batch": 1.0, "step": 0.5})
    assert found == {"sampling": 30.0, "training": 5.0, "iteration": 35.0, "once": 27.0, "run": 27.0 + 5 * 35.0}
