"""`raft drift`: what has spread in the responses of a run, from its records alone.

raft drift output_models/first_run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raft.arguments import argument
from raft.config import require
from raft.errors import UserError
from raft.reports.drift import DriftConfig


@dataclass
class DriftRunOptions:
    """Run"""

    run_dir: str = argument(
        "", "Run directory of raft align; its samples are read, its drift.json files written.", metavar="RUN",
        required=True, positional=True,
    )  # fmt: skip
    iteration: int = argument(0, "Print the table of this iteration; 0 is the last.")

    def __post_init__(self) -> None:
        require(self.iteration >= 0, f"--iteration: found {self.iteration}, allowed are integers from 0.")


@dataclass
class DriftToolConfig:
    """Look again at what has spread in the responses of a run, with the same or other limits."""

    run: DriftRunOptions = field(default_factory=DriftRunOptions)
    drift: DriftConfig = field(default_factory=DriftConfig)

    examples: ClassVar[tuple[str, ...]] = (
        "raft drift output_models/first_run",
        "raft drift output_models/first_run --iteration 3 --drift_ratio 2",
    )


def main(config: DriftToolConfig) -> None:
    """Print the alarms of every iteration and the table of one; write every ``drift.json`` again.

    Raises UserError where there are no samples, or none of the iteration that is asked for.
    """
    from raft.reports.drift_run import RunWatch, samples_file
    from raft.reports.drift_text import describe, table
    from raft.run_directory import RunDirectory

    run = Path(config.run.run_dir)
    last = 0
    while samples_file(run, last + 1).is_file():
        last += 1
    if not last:
        raise UserError(f"--run_dir {run}: found no {samples_file(Path(), 1)} there, expected a run of raft align.")
    if config.run.iteration > last:
        raise UserError(f"--iteration: found {config.run.iteration}, allowed is up to {last}, the last of {run}.")
    watch = RunWatch(RunDirectory(run), config.drift)
    for iteration in range(1, last + 1):
        report = watch.look(iteration)
        text = describe(report)
        print(f"iteration {iteration}: {len(report['alarms'])} alarms" + (f"\n{text}" if text else ""))
        if iteration == (config.run.iteration or last):
            chosen = report
    print(f"\niteration {chosen['iteration']}, what is more frequent than at the start ({chosen['num_tested']} tested)")
    print(table(chosen))
