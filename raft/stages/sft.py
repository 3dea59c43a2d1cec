"""Supervised fine-tuning: full or LoRA, on conversations (loss on responses) or plain text (loss on every token).

raft sft --dataset_path conversations.jsonl --output_dir output_models/sft
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raft import distributed
from raft.bars import tqdm
from raft.data.batching import Batch, collate
from raft.data.encoding import TokenRow, encode_rows
from raft.data.loading import load_rows, split_rows
from raft.data.templates import ConversationTemplate
from raft.engine.build import build_policy
from raft.engine.checkpoint import load_latest, save_checkpoint
from raft.engine.engine import Sums
from raft.engine.export import export
from raft.engine.loop import count_steps, evaluation_batches, train_steps
from raft.engine.nonfinite import NonfiniteSteps
from raft.models.forward import next_token_loss
from raft.models.loading import load_tokenizer, refuse_beyond_context
from raft.stages.common import finish, log_step, start, take
from raft.stages.sft_config import SFTConfig


def main(config: SFTConfig) -> None:
    """Train, evaluate at start, every ``eval_steps`` and at the end, and save the model to ``final/``."""
    run = start(config, "sft")
    tokenizer = load_tokenizer(config.model)
    train, held_out = load_data(config, ConversationTemplate(tokenizer, config.model.template))
    engine = build_policy(
        config.model,
        config.lora,
        config.training,
        seed=config.run.seed,
        total_steps=count_steps(len(train), config.training),
    )
    refuse_beyond_context(engine.module.config, max(map(num_tokens, [*train, *held_out])), flags="--max_length")

    def make_batch(rows: Sequence[TokenRow]) -> Batch:
        return collate(rows, tokenizer.pad_token_id)

    def evaluate() -> Sums:
        size = config.training.per_device_train_batch_size
        batches = evaluation_batches(held_out, length=num_tokens, collate=make_batch, micro_batch_size=size)
        metrics = engine.evaluate(batches, next_token_loss)
        metrics["perplexity"] = math.exp(min(metrics["loss"], 50.0))
        run.log({"step": engine.num_steps} | {f"eval/{name}": value for name, value in metrics.items()})
        if distributed.is_main():
            tqdm.write(
                f"step {engine.num_steps}: held-out loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}"
            )
        return metrics

    def save() -> None:
        save_checkpoint(engine, run, engine.num_steps, {"held_out": metrics})

    take(run, config)
    state = load_latest(engine, run) if run.resumes else {}
    done = state.get("num_steps", 0)
    metrics: Sums = evaluate() if held_out and not done else state.get("held_out", {})
    steps = train_steps(
        engine,
        train,
        next_token_loss,
        length=num_tokens,
        collate=make_batch,
        epochs=range(config.training.num_train_epochs),
        seed=config.run.seed,
        save=save,
        nonfinite=NonfiniteSteps(run, tokenizer),
        save_steps=config.data.save_steps,
        skip_steps=done,
    )
    with tqdm(
        desc="sft", initial=done, total=engine.total_steps, unit="step", disable=not distributed.is_main()
    ) as bar:
        for step_metrics in steps:
            log_step(run, engine, step_metrics, bar, config.training.logging_steps)
            if held_out and engine.evaluates_now():
                metrics = evaluate()
    card = f"---\nbase_model: {config.model.model_name_or_path}\ntags: [raft, sft]\n---\n# {run.path.name}\n\n"
    card += f"{config.model.model_name_or_path}, fine-tuned by `raft sft` on {len(train)} rows.\n"
    export(engine, tokenizer, run.path / "final", card=card, base_model=config.model.model_name_or_path)
    summary = {"loss": metrics.get("loss"), "perplexity": metrics.get("perplexity"), "num_train_rows": len(train)}
    finish(run, engine, summary | {"num_held_out_rows": len(held_out)})


def load_data(config: SFTConfig, template: ConversationTemplate) -> tuple[list[TokenRow], list[TokenRow]]:
    """Read and encode the data, hold out the last percent, and say what was left out."""
    data = load_rows(config.data.dataset_path, kinds={"conversation", "text"}, max_rows=config.data.num_rows)
    parts: list[list[TokenRow]] = []
    for rows in split_rows(data.rows, config.data.validation_split_percentage):
        if not rows:
            parts.append([])
            continue
        options = {"max_length": config.data.max_length, "overlong": config.data.overlong}
        encoded = encode_rows(rows, template, packing=config.data.packing, **options)  # type: ignore[arg-type]
        parts.append(encoded.rows)
        if distributed.is_main():
            left_out = dict(encoded.counts) | data.skipped
            print(f"{len(rows)} rows -> {len(encoded.rows)} training rows; {left_out or 'nothing left out'}")
    return parts[0], parts[1]


def num_tokens(row: TokenRow) -> int:
    """Length of a row."""
    return len(row.tokens)
