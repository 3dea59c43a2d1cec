"""Checkpoints that are complete or not there: written aside, listed with checksums, renamed; old ones go last."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft import distributed, manifest
from raft.engine.engine import Engine
from raft.errors import UserError
from raft.run_directory import RunDirectory, noticing_full_disk, sync_directory, write_json

STATE = "state.json"


def save_checkpoint(
    engine: Engine,
    run: RunDirectory,
    number: int,
    state: dict[str, Any],
    *,
    keep: int = 1,
    within: bool = False,
    needs: Sequence[Path] = (),
) -> None:
    """Write ``checkpoints/<number>`` on all ranks together.

    Args:
        number: iteration or step the checkpoint stands after.
        state: what the stage needs besides the engine; JSON.
        keep: complete checkpoints to keep, this one included.
        within: the checkpoint stands within the iteration after ``number``. It goes with the next one of any kind, and
            does not count towards ``keep``.
        needs: files elsewhere in the run directory that it is of no use without.
    """
    checkpoints = run.path / "checkpoints"
    final = checkpoints / (f"{number:06d}-{engine.num_steps:06d}" if within else f"{number:06d}")
    aside = final.with_name(f"{final.name}.part")
    if distributed.is_main():
        for leftover in checkpoints.glob("*.part"):
            shutil.rmtree(leftover)
        aside.mkdir(parents=True)
    distributed.barrier()
    with noticing_full_disk(checkpoints):
        engine.save_state(aside)
    if distributed.is_main():
        known = {"number": number, "num_steps": engine.num_steps, "log_length": run.log_length()}
        write_json(aside / STATE, known | state)
    distributed.barrier()
    manifest.write_manifest(aside, needs)
    if distributed.is_main():
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        sync_directory(checkpoints)
        _remove_old(checkpoints, final, keep)
    distributed.barrier()


def _remove_old(checkpoints: Path, newest: Path, keep: int) -> None:
    complete = complete_checkpoints(checkpoints)
    whole = [path for path in complete if "-" not in path.name]
    for old in [*whole[:-keep], *(path for path in complete if "-" in path.name)]:
        if old != newest:
            shutil.rmtree(old)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in _named(checkpoints) if (path / manifest.NAME).is_file()]


def _named(checkpoints: Path) -> list[Path]:
    """What is called a checkpoint, oldest first. Without a manifest it is none of ours, or was tampered with."""
    return sorted(path for path in checkpoints.glob("*") if re.fullmatch(r"\d{6,}(-\d{6,})?", path.name))


def refuse_losing(run: Path, changed: Sequence[str]) -> None:
    """Raise UserError if a run's only checkpoints are of no use once what it has begun is done otherwise.

    Args:
        changed: settings by which it would be done otherwise.
    """
    named = _named(run / "checkpoints")
    if named and all("-" in path.name for path in named) and (number := int(named[-1].name.partition("-")[0])):
        raise UserError(
            f"--{changed[0]}: the only checkpoint of the run to be resumed, {named[-1]}, stands within iteration "
            f"{number + 1}, which another {changed[0]} would begin anew. Resume it with --{changed[0]} as it was and "
            "--save_every_n_iterations 1, until there is a checkpoint behind that iteration."
        )


def load_latest(engine: Engine, run: RunDirectory) -> dict[str, Any]:
    """Restore the newest good checkpoint on all ranks and give its state; {} where the run has not come to one.

    What metrics.jsonl says of later steps is dropped: they will be taken again. A damaged checkpoint is named, put
    aside, and the one before it is used.

    Raises:
        UserError: if there are only damaged ones.
    """
    checkpoints = run.path / "checkpoints"
    found = distributed.broadcast(_named(checkpoints))
    while found and (fault := manifest.find_fault(found[-1])):
        damaged = f"{found[-1]} is damaged: {fault}"
        first = len(found) == 1
        if first and not found[-1].name.startswith(f"{0:06d}-"):  # before the first iteration's is the start of the run
            remedy = "Start again with --overwrite_output_dir true."
            raise UserError(f"--resume: {damaged}, and there is no other. {remedy}")
        if distributed.is_main():
            print(f"{damaged}; going back to {'the start' if first else 'the one before it'}", file=sys.stderr)
        _put_aside(found.pop())
    if not found:
        run.truncate_log(0)
        return {}
    state: dict[str, Any] = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
    engine.load_state(found[-1])
    run.truncate_log(state["log_length"])
    return state


def _put_aside(path: Path) -> None:
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(path.with_name(f"{path.name}.damaged"), ignore_errors=True)
        os.replace(path, path.with_name(f"{path.name}.damaged"))
    distributed.barrier()
