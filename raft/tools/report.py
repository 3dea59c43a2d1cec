"""`raft report`: one self-contained HTML page of one or several runs, from their records alone.

raft report output_models/first_run output_models/second_run
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raft.arguments import argument
from raft.config import require


@dataclass
class ReportOptions:
    """Runs"""

    runs: list[str] = argument(
        [],
        "Run directories of raft align, sft or reward, finished or not; others are compared with the first.",
        metavar="RUN",
        required=True,
        commas=False,
        positional=True,
    )
    output_file: str | None = argument(
        None, "Where the page goes; none is report.html in the first run directory.", metavar="FILE"
    )
    max_megabytes: float = argument(
        4.0, "What the page may take; beyond it sample texts are left out, and the page says how many."
    )

    def __post_init__(self) -> None:
        require(self.max_megabytes > 0, f"--max_megabytes: found {self.max_megabytes}, allowed is above 0.")


@dataclass
class ReportConfig:
    """Write one HTML page of one or several runs: summary, alarms, curves, texts before and after, samples."""

    report: ReportOptions = field(default_factory=ReportOptions)

    examples: ClassVar[tuple[str, ...]] = (
        "raft report output_models/first_run",
        "raft report output_models/sft output_models/aligned --output_file comparison.html",
    )


def main(config: ReportConfig) -> None:
    """Write the page and say where it is and how large.

    Raises UserError for a directory that holds no run.
    """
    from raft.reports.page.page import write_page

    options = config.report
    output = Path(options.output_file) if options.output_file else None
    written = write_page(options.runs, output, max_megabytes=options.max_megabytes)
    print(f"{written} ({written.stat().st_size / 1e6:.2f} MB)")
