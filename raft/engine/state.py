"""What a checkpoint holds of an engine: weights, optimizer, schedule, counters, and each rank's random state."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from raft import distributed
from raft.engine.around_deepspeed import quiet
from raft.engine.resharding import cutting_anew
from raft.errors import UserError

if TYPE_CHECKING:
    from raft.engine.engine import Engine


def save(engine: Engine, directory: Path) -> None:
    """See ``Engine.save_state``."""
    own = {"skipped_in_a_row": engine.skipped_in_a_row, "rows_per_step": _rows_per_step(engine)}
    with quiet():
        engine.deepspeed.save_checkpoint(str(directory), tag="engine", client_state=own, exclude_frozen_parameters=True)
    torch.save(_random_state(), directory / f"random-{distributed.rank()}.pt")


def load(engine: Engine, directory: Path) -> None:
    """See ``Engine.load_state``."""
    num_ranks = len(list(directory.glob("random-*.pt")))
    moved = num_ranks != distributed.world_size()
    with quiet(), cutting_anew(engine.deepspeed) if moved and engine.zero_stage else nullcontext():
        path, own = engine.deepspeed.load_checkpoint(str(directory), tag="engine", load_module_strict=False)
    if path is None:
        raise UserError(f"--resume: {directory} is not a checkpoint that DeepSpeed can read.")
    rows = _rows_per_step(engine)
    if own.get("rows_per_step", rows) != rows:
        raise UserError(f"--resume: {directory} has steps of {own['rows_per_step']} rows, this run of {rows}.")
    _follow_schedule(engine.scheduler)
    engine.skipped_in_a_row = own.get("skipped_in_a_row", 0)
    random = torch.load(directory / f"random-{0 if moved else distributed.rank()}.pt", weights_only=True)
    if moved:
        torch.manual_seed(another_seed(random["cpu"], engine.num_steps))
    else:
        _set_random_state(random)


def _follow_schedule(scheduler: Any) -> None:
    """Give the next step the rate of this run's schedule: that of a run which was to be shorter has come lower."""
    factors = getattr(scheduler, "lr_lambdas", None)  # a schedule that follows from the number of steps alone
    if factors is None:
        return
    rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _rows_per_step(engine: Engine) -> int:
    return engine.training.rows_per_step(distributed.world_size())


def another_seed(random_state: torch.Tensor, num_steps: int) -> int:
    """What a rank draws from on another number of ranks: it has no state of its own to go on with.

    It follows from the run (the state of its rank 0, the number of steps taken) and from which of how many ranks it is.
    """
    own = f"{num_steps} {distributed.rank()} of {distributed.world_size()}".encode()
    return xxhash.xxh3_64_intdigest(random_state.numpy().tobytes() + own) >> 1  # torch takes 63 bits of any


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
