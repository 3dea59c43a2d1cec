"""Checkpoints that are complete or not there: written aside, flushed, renamed; old ones go last."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from raft import distributed
from raft.engine.engine import Engine
from raft.errors import UserError
from raft.run_directory import RunDirectory, write_json

STATE = "state.json"


def save_checkpoint(engine: Engine, checkpoints: Path, number: int, state: dict[str, Any], *, keep: int = 1) -> None:
    """Write ``checkpoints/<number>`` on all ranks together.

    Args:
        number: iteration or step the checkpoint stands after.
        state: what the stage needs besides the engine; JSON. It is written last and marks the checkpoint complete.
        keep: complete checkpoints to keep, this one included.
    """
    aside = checkpoints / f"{number:06d}.part"
    if distributed.is_main():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    distributed.barrier()
    engine.save_state(aside)
    distributed.barrier()
    if distributed.is_main():
        for path in aside.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        write_json(aside / STATE, {"number": number, "num_steps": engine.num_steps, **state})
        final = checkpoints / f"{number:06d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        for old in complete_checkpoints(checkpoints)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in checkpoints.glob("[0-9]*") if p.suffix != ".part" and (p / STATE).is_file())


def load_latest(engine: Engine, run: RunDirectory) -> dict[str, Any]:
    """Restore the newest complete checkpoint on all ranks and give its state.

    What metrics.jsonl says of later steps is dropped: they will be taken again.

    Raises:
        UserError: if there is none.
    """
    found = complete_checkpoints(run.path / "checkpoints")
    if not found:
        raise UserError(f"--resume: there is no complete checkpoint in {run.path / 'checkpoints'}.")
    engine.load_state(found[-1])
    run.truncate_log(lambda row: row.get("step", 0) <= engine.num_steps)
    return json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
