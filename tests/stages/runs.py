"""Runs of the training stages: several in one process, or killed halfway; and what they leave behind."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import run_ranks
from tests.processes import run_forked

MANY = """
import json, sys
from raft.cli import main
from raft.reports import curves

def undrawn(directory):  # drawing takes as long as the run
    (directory / "plots").mkdir(exist_ok=True)
    (directory / "plots/loss.png").touch()

curves.draw_training_curves = undrawn
for arguments in json.loads(open(sys.argv[1]).read()):
    code = main(arguments)
    assert code == 0, (arguments, code)
"""


def run_many(directory: Path, commands: Sequence[Sequence[object]], num_processes: int = 1) -> None:
    """Run several commands one after the other in one process (a rank), which starts up only once; plots are empty."""
    file = directory / "commands.json"
    file.write_text(json.dumps([[str(argument) for argument in command] for command in commands]))
    run_ranks(MANY, num_processes, file)


DYING = """
import os, signal, sys
from raft.cli import main
from raft.run_directory import RunDirectory
log = RunDirectory.log
def log_and_die(self, metrics):
    log(self, metrics)
    if metrics["step"] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
RunDirectory.log = log_and_die
main(sys.argv[2:])
"""


def run_and_kill(arguments: Sequence[object], after_step: int) -> None:
    """Run ``raft`` until it has logged a step, then kill it with no chance to tidy up."""
    done = run_forked(("-c", DYING), after_step, *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def read_metrics(run: Path, prefix: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that hold some ``prefix``/..., without the time of day."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if any(name.startswith(f"{prefix}/") for name in row)]
    return [{name: value for name, value in row.items() if name != "time"} for row in found]


def files(run: Path) -> set[str]:
    """Paths of all files, relative to the run directory; an event file of TensorBoard is ``tensorboard/events``."""
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {re.sub(r"^(tensorboard/events)\.out\..*", r"\1", name) for name in found}
