"""The run of a stage that trains on rows given beforehand: held-out evaluations, steps, checkpoints; as it resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raft import distributed, inputs
from raft.bars import tqdm
from raft.data.batching import Batching
from raft.data.encoding import PairRow, TokenRow
from raft.engine.checkpoint import load_latest, save_checkpoint
from raft.engine.engine import Engine, LossFn, Sums
from raft.engine.loop import evaluation_batches, train_steps
from raft.engine.nonfinite import NonfiniteSteps
from raft.run_directory import RunDirectory
from raft.stages.common import initial_weights, log_step, take


@dataclass(frozen=True)
class Training:
    """What is trained on what.

    Attributes:
        name: of the stage, beside the progress bar.
        rows, held_out: to train on, and to evaluate on (perhaps none).
        loss_fn: see ``Engine.train_step``.
        batching: how rows become batches.
        describe: adds to the metrics of an evaluation, and says them in a few words.
    """

    name: str
    rows: Sequence[Any]
    held_out: Sequence[Any]
    loss_fn: LossFn
    batching: Batching
    describe: Callable[[Sums], str]

    def run(self, run: RunDirectory, config: Any, engine: Engine, tokenizer: Any, *, save_steps: int) -> Sums:
        """Take the run directory, evaluate at the start, train, and evaluate every ``eval_steps`` and at the end.

        Returns:
            Metrics of the last evaluation; empty without held-out rows.
        """
        take(run, config, self.made_from(config, engine))
        state = load_latest(engine, run) if run.resumes else {}
        done = state.get("num_steps", 0)
        metrics: Sums = state.get("held_out", {})
        if self.held_out and not done:
            metrics = self.evaluate(run, engine)
        steps = train_steps(
            engine,
            self.rows,
            self.loss_fn,
            self.batching,
            epochs=range(config.training.num_train_epochs),
            seed=config.run.seed,
            save=lambda: save_checkpoint(engine, run, engine.num_steps, {"held_out": metrics}),
            nonfinite=NonfiniteSteps(run, tokenizer),
            save_steps=save_steps,
            skip_steps=done,
        )
        hidden = not distributed.is_main()
        with tqdm(desc=self.name, initial=done, total=engine.total_steps, unit="step", disable=hidden) as bar:
            for step_metrics in steps:
                log_step(run, engine, step_metrics, bar, config.training.logging_steps)
                if self.held_out and engine.evaluates_now():
                    metrics = self.evaluate(run, engine)
        return metrics

    def made_from(self, config: Any, engine: Engine) -> dict[str, str]:
        """Digests of rows and initial weights, by their flags: see ``raft.inputs``."""
        rows = inputs.digest(part for row in [*self.rows, *self.held_out] for part in _contents(row))
        return {"--dataset_path": rows} | initial_weights(config, engine)

    def evaluate(self, run: RunDirectory, engine: Engine) -> Sums:
        """Metrics over the held-out rows, logged and told."""
        size = engine.training.per_device_train_batch_size
        batches = evaluation_batches(self.held_out, self.batching, micro_batch_size=size)
        metrics = engine.evaluate(batches, self.loss_fn)
        told = self.describe(metrics)
        run.log({"step": engine.num_steps} | {f"eval/{name}": value for name, value in metrics.items()})
        if distributed.is_main():
            tqdm.write(f"step {engine.num_steps}: held-out {told}")
        return metrics


def _contents(row: TokenRow | PairRow) -> tuple[Any, ...]:
    """What a row is to training."""
    if isinstance(row, PairRow):
        return row.chosen, row.rejected, row.margin
    return row.tokens, row.trained, row.positions
