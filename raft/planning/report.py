"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raft.planning.estimate import SET_UP, Plan, verdict
from raft.planning.machine import Machine

WIDTH = 64
Change = tuple[str, int]
"""Flags, and bytes that they save at the peak."""


def describe(plan: Plan, machine: Machine, changes: Sequence[Change], seconds: Sequence[str]) -> str:
    """The whole page."""
    peaks = plan.peaks(on_gpu=machine.on_gpu)
    peak = max(peaks.values())
    worst = next(name for name, size in peaks.items() if size == peak)
    needed = peak + machine.taken
    lines = [*plan.facts, "", f"memory of one process, on the {machine.device}"]
    lines += [_row(name, size) for name, size in plan.parts.items()]
    lines += ["", "peak by phase"]
    lines += [_row(name + (" (the most)" if name == worst else ""), size) for name, size in peaks.items()]
    libraries = f" + {_size(machine.taken)} of libraries" if machine.taken else ""
    found = verdict(needed, machine.memory)
    lines += ["", f"{found}: {_size(peak)}{libraries} of {_size(machine.memory)} that a process has"]
    if found != "fits" and not changes:
        lines += ["no flag alone would save more than 2% of that"]
    if changes:
        lines += ["at the peak, these would save:", *(_row(flags, size) for flags, size in changes)]
    lines += ["", "disk", *(_row(name, size) for name, size in plan.disk.files.items() if size)]
    lines += [_row("while saving, besides", plan.disk.passing)]
    lines += [f"{_on_disk(plan.disk.most, machine.disk)}: {_size(plan.disk.most)} of {_size(machine.disk)} free"]
    return "\n".join([*lines, "", *seconds])


def as_json(plan: Plan, machine: Machine, seconds: Mapping[str, float]) -> dict[str, object]:
    """The numbers, in bytes and seconds, for programs."""
    peaks = plan.peaks(on_gpu=machine.on_gpu)
    return {
        "facts": list(plan.facts),
        "parts": dict(plan.parts),
        "peaks": peaks,
        "peak": max(peaks.values()),
        "set_up": 0 if machine.on_gpu else SET_UP,
        "libraries": machine.taken,
        "memory": machine.memory,
        "verdict": verdict(max(peaks.values()) + machine.taken, machine.memory),
        "disk": dict(plan.disk.files) | {"while saving": plan.disk.passing},
        "disk_free": machine.disk,
        "seconds": dict(seconds),
    }


def _on_disk(needed: int, free: int) -> str:
    return "fits" if needed <= free else "does not fit"


def _row(name: str, size: int) -> str:
    return f"  {name:<{WIDTH}}{_size(size):>12}"


def _size(size: int) -> str:
    """Bytes in GiB from one on, else in MiB."""
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.42 s, 85 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
