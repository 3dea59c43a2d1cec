"""From what a run holds and what its passes need to the peak of every phase, and what that means for a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raft.functional.engine_memory import EngineBytes
from raft.planning.passes import Usage

Verdict = Literal["fits", "tight", "does not fit"]
TIGHT = 0.85
"""Share of the memory from which there is no room for what the estimate misses: it was off by up to a fifth."""
SET_UP = 80 << 20
"""Bytes that a process has beside models: tokenizer, data, what libraries make at first use. Measured on a CPU."""


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: as the run's own records call it.
        held: bytes there throughout.
        usage: bytes beside these that come and go.
    """

    name: str
    held: int
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves, by what they are; ``passing`` is there besides for a time."""

    files: Mapping[str, int]
    passing: int

    @property
    def most(self) -> int:
        """The most at a time."""
        return sum(self.files.values()) + self.passing


@dataclass(frozen=True)
class Work:
    """How often a run does what a probe can time; names are those of the phases.

    Attributes:
        once: unit -> how many in the whole run outside of iterations.
        iteration: unit -> how many in an iteration; for a run without iterations, in an optimizer step.
        num_iterations: iterations, or optimizer steps.
        unit: what is counted by ``num_iterations``.
    """

    once: Mapping[str, float]
    iteration: Mapping[str, float]
    num_iterations: int
    unit: str


@dataclass(frozen=True)
class Plan:
    """All that is known of a run before it starts.

    Attributes:
        facts: lines that say what was assumed.
        parts: what is in memory by kind, in bytes: those at rest first.
        phases: in the order of the run.
        disk: what it leaves.
        work: what it does.
        sizes: what a probe has to run.
    """

    facts: Sequence[str]
    parts: Mapping[str, int]
    phases: Sequence[Phase]
    disk: Disk
    work: Work
    sizes: Mapping[str, int] = field(default_factory=dict)

    def peaks(self, *, on_gpu: bool) -> dict[str, int]:
        """Bytes at the peak of each phase. On a CPU, small blocks that one phase frees are there in the next."""
        kept, found = max(phase.usage.kept for phase in self.phases), dict[str, int]()
        for phase in self.phases:
            usage = phase.usage
            beside = usage.live if on_gpu else usage.resident + kept - usage.kept + SET_UP
            found[phase.name] = max(found.get(phase.name, 0), phase.held + beside)
        return found

    def peak(self, *, on_gpu: bool) -> int:
        """Bytes at the peak of the run."""
        return max(self.peaks(on_gpu=on_gpu).values())


def training_phases(engine: EngineBytes, others: int, usage: Usage) -> list[Phase]:
    """The three moments of an optimizer step: its last backward pass, reducing gradients, and the optimizer.

    Args:
        others: bytes of other models.
        usage: of a micro-batch.
    """
    held = engine.resting + others + engine.first_pass
    alone = Usage(usage.live_alone, usage.resident_alone, usage.kept)
    passing = alone if engine.first_pass or engine.bucket else usage
    idle = Usage(0, usage.kept, usage.kept)
    return [
        Phase("training", held + engine.bucket, passing),
        Phase("training", held + engine.reducing, idle),
        Phase("training", held + engine.stepping, idle),
    ]


def verdict(needed: int, available: int) -> Verdict:
    """Whether a run fits, with or without room for what the estimate misses."""
    if needed > available:
        return "does not fit"
    return "tight" if needed > TIGHT * available else "fits"
