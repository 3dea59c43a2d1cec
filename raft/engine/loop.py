"""From rows to optimizer steps: what every training stage shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from raft import distributed, signals
from raft.config import TrainingConfig
from raft.data.batching import Batching, plan_epoch, share_step
from raft.engine.engine import Engine, LossFn, NonfiniteStep, Sums
from raft.engine.nonfinite import NonfiniteSteps

RowT = TypeVar("RowT")
PASS_COST = 64  # positions in the time of a forward and backward pass over none, on a CPU (benchmarks/kernels.py)


def rows_per_step(training: TrainingConfig) -> int:
    """Rows of one optimizer step, over micro-batches and ranks."""
    return training.rows_per_step(distributed.world_size())


def count_steps(num_rows: int, training: TrainingConfig, *, num_rounds: int = 1) -> int:
    """Optimizer steps of a run: all epochs over ``num_rows`` rows, ``num_rounds`` times, or ``max_steps`` if fewer."""
    steps = -(-num_rows // rows_per_step(training)) * training.num_train_epochs * num_rounds
    return steps if training.max_steps < 0 else min(steps, training.max_steps)


def micro_batches(
    rows: Sequence[RowT], step: Sequence[int], batching: Batching, *, micro_batch_size: int
) -> list[Any]:
    """This rank's micro-batches of one step; where it has no rows, one of weight 0 to keep the ranks together.

    A CPU computes padding as slowly as text, so that rows of different lengths are not padded to each other there.
    """
    shares = share_step(
        step,
        lambda i: batching.length(rows[i]),
        micro_batch_size=micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pass_cost=PASS_COST if batching.padded and distributed.device().type == "cpu" else None,
    )
    collate, nobody = batching.collate, rows[step[0]]
    return [collate([rows[i] for i in share]) if share else replace(collate([nobody]), weight=0) for share in shares]


def train_steps(
    engine: Engine,
    rows: Sequence[RowT],
    loss_fn: LossFn,
    batching: Batching,
    *,
    epochs: range,
    seed: int,
    save: Callable[[], None],
    nonfinite: NonfiniteSteps,
    save_steps: int = 0,
    skip_steps: int = 0,
) -> Iterator[Sums]:
    """Take the optimizer steps of some epochs over ``rows``, up to the run's last one, and yield the metrics of each.

    Args:
        epochs: numbers of the epochs in the run; each has its own order, drawn from (seed, epoch).
        save: writes a checkpoint; called every ``save_steps`` steps (0 is never) and when the run is asked to stop,
            after the caller is done with the step's metrics.
        nonfinite: what becomes of a step whose loss or gradient is not finite. Once one was left out, metrics have
            the number of them, ``skipped_steps``.
        skip_steps: steps at the start that an earlier run has taken.

    Raises:
        Stopped: on all ranks, once it is saved, if one of them was asked to stop.
        UserError: on all ranks, if a step is not finite and the run is to stop there.
    """
    training = engine.training
    steps = [
        step
        for epoch in epochs
        for step in plan_epoch(len(rows), rows_per_step=rows_per_step(training), seed=seed, epoch=epoch)
    ]
    for step in steps[skip_steps:]:
        if engine.num_steps >= engine.total_steps:
            return
        size = training.per_device_train_batch_size
        batches = micro_batches(rows, step, batching, micro_batch_size=size)
        try:
            metrics = engine.train_step(batches, loss_fn)
        except NonfiniteStep as error:
            metrics = nonfinite.leave_out(engine, error, rows, step, loss_fn, batching)
        yield metrics | ({"skipped_steps": engine.num_skipped_steps} if engine.num_skipped_steps else {})
        stop = distributed.all_reduce_max(signals.requested())
        if stop or (save_steps and engine.num_steps % save_steps == 0):
            save()
        if stop:
            raise signals.Stopped(stop)


def evaluation_batches(rows: Sequence[Any], batching: Batching, *, micro_batch_size: int) -> list[Any]:
    """This rank's micro-batches of a whole data set, rows of similar length together."""
    return micro_batches(rows, range(len(rows)), batching, micro_batch_size=micro_batch_size)
