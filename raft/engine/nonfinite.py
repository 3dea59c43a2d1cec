"""Steps whose loss or gradient is not finite: their rows are written down; the run stops, or goes on without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raft import distributed
from raft.data.batching import Batching, share_step
from raft.engine.engine import Engine, LossFn, NonfiniteStep, Sums
from raft.errors import UserError
from raft.run_directory import RunDirectory


@dataclass(frozen=True)
class NonfiniteSteps:
    """What becomes of them, as ``--nonfinite_steps`` says.

    Attributes:
        run: gets ``nonfinite/step-000012.json``, see :meth:`write`.
        tokenizer: makes texts of token ids.
    """

    run: RunDirectory
    tokenizer: Any

    def leave_out(
        self,
        engine: Engine,
        error: NonfiniteStep,
        rows: Sequence[Any],
        step: Sequence[int],
        loss_fn: LossFn,
        batching: Batching,
    ) -> Sums:
        """Write down a step's rows, and count the step as one that was not taken; on all ranks together.

        Args:
            rows, step: the training rows, and which of them are the step's.

        Returns:
            The step's metrics: a loss that is not a number, of no weight.

        Raises:
            UserError: on all ranks, if the run is to stop: at once, or after too many in a row.
        """
        training = engine.training
        losses = self._losses(engine, rows, step, loss_fn, batching)
        name = f"nonfinite/step-{error.step:06d}.json"
        size = training.per_device_train_batch_size
        self._write(name, error, rows, losses, _ranks(step, rows, batching, size))
        told = f"{error}, so the step was not taken; its rows are in {self.run.path / name}."
        if training.nonfinite_steps == "stop":
            raise UserError(
                f"{told} --resume goes on from the last checkpoint, and with --nonfinite_steps skip without such steps."
            )
        if engine.skipped_in_a_row + 1 >= training.max_nonfinite_steps:
            count = f"--max_nonfinite_steps {training.max_nonfinite_steps}"
            raise UserError(f"{told} It was the last of as many in a row as are skipped ({count}).")
        engine.skip_step()
        return dict.fromkeys(error.metrics, math.nan) | {
            "learning_rate": error.metrics["learning_rate"],
            "weight": 0.0,
        }

    def _losses(
        self,
        engine: Engine,
        rows: Sequence[Any],
        step: Sequence[int],
        loss_fn: LossFn,
        batching: Batching,
    ) -> dict[int, float]:
        """Loss of each row alone, without dropout, per unit of its weight; each rank computes a part of them."""
        mine: dict[int, float] = {}
        with engine.generating() as module:
            for i in step[distributed.rank() :: distributed.world_size()]:
                batch = batching.collate([rows[i]])
                loss, _ = loss_fn(module, batch.to(distributed.device()))
                mine[i] = loss.item() / max(1, batch.weight)
        return {i: loss for part in distributed.all_gather(mine) for i, loss in part.items()}

    def _write(
        self,
        name: str,
        error: NonfiniteStep,
        rows: Sequence[Any],
        losses: dict[int, float],
        ranks: dict[int, int],
    ) -> None:
        """Write the step: its metrics, and of every row its number, rank, loss, token ids and their text."""
        found = [
            {"row": i, "rank": rank, "loss": _plain(losses[i]), **self._describe(rows[i])} for i, rank in ranks.items()
        ]
        metrics = {key: _plain(value) for key, value in error.metrics.items()}
        self.run.write_json(name, {"step": error.step, **metrics, "rows": found})

    def _describe(self, row: Any) -> dict[str, Any]:
        """Token ids (of a pair: of both responses with their prompt) and texts."""
        ids = {key: value for key in ("tokens", "chosen", "rejected") if (value := getattr(row, key, None)) is not None}
        texts = {f"{key}_text": self.tokenizer.decode(value) for key, value in ids.items()}
        described: dict[str, Any] = {**ids, **texts}
        if hasattr(row, "trained"):
            described["trained"] = row.trained
        return described


def _ranks(
    step: Sequence[int], rows: Sequence[Any], batching: Batching, micro_batch_size: int
) -> dict[int, int]:
    """Row -> the rank that had it in the step."""
    world_size = distributed.world_size()

    def length(i: int) -> int:
        return batching.length(rows[i])

    return {
        i: rank
        for rank in range(world_size)
        for share in share_step(step, length, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        for i in share
    }


def _plain(value: float) -> float | str:
    """A number, or the name of what JSON has no word for: nan, inf, -inf."""
    return value if math.isfinite(value) else str(value)
