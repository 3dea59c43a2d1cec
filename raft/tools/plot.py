"""`raft plot`: redraw the curves of a run from its metrics.jsonl, also while the run goes on.

raft plot output_models/first_run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raft.arguments import argument
from raft.errors import UserError


@dataclass
class PlotOptions:
    """Run"""

    run_dir: str = argument(
        "", "Run directory; its metrics.jsonl is read, its plots/ written.", metavar="RUN", required=True,
        positional=True,
    )  # fmt: skip


@dataclass
class PlotConfig:
    """Redraw the curves of a run from its metrics.jsonl."""

    plot: PlotOptions = field(default_factory=PlotOptions)

    examples: ClassVar[tuple[str, ...]] = ("raft plot output_models/first_run",)


def main(config: PlotConfig) -> None:
    """Draw what the run has data for and print the files written.

    Raises UserError where the directory has no metrics.jsonl or nothing in it can be drawn.
    """
    from raft.reports.curves import draw_align_curves

    run_dir = Path(config.plot.run_dir)
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--run_dir {run_dir}: found no metrics.jsonl there, expected a run directory.")
    written = draw_align_curves(run_dir)
    if not written:
        raise UserError(f"{path}: found no reward, diversity, loss or seconds to draw.")
    for file in written:
        print(file)
