"""What a checkpoint holds of an engine: weights, optimizer, schedule, counters, and each rank's random state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raft import distributed
from raft.engine.around_deepspeed import quiet
from raft.errors import UserError

if TYPE_CHECKING:
    from raft.engine.engine import Engine


def save(engine: Engine, directory: Path) -> None:
    """See ``Engine.save_state``."""
    own = {"skipped_in_a_row": engine.skipped_in_a_row}
    with quiet():
        engine.deepspeed.save_checkpoint(str(directory), tag="engine", client_state=own, exclude_frozen_parameters=True)
    torch.save(_random_state(), directory / f"random-{distributed.rank()}.pt")


def load(engine: Engine, directory: Path) -> None:
    """See ``Engine.load_state``."""
    random_file = directory / f"random-{distributed.rank()}.pt"
    num_ranks = len(list(directory.glob("random-*.pt")))
    if num_ranks != distributed.world_size():
        raise UserError(
            f"--resume: {directory} was written by {num_ranks} processes, this run has {distributed.world_size()}; "
            "resume with the same number."
        )
    with quiet():
        path, own = engine.deepspeed.load_checkpoint(str(directory), tag="engine", load_module_strict=False)
    if path is None:
        raise UserError(f"--resume: {directory} is not a checkpoint that DeepSpeed can read.")
    engine.skipped_in_a_row = own.get("skipped_in_a_row", 0)
    _set_random_state(torch.load(random_file, weights_only=True))


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
