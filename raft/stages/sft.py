"""Supervised fine-tuning: full or LoRA, on conversations (loss on responses) or plain text (loss on every token).

raft sft --dataset_path conversations.jsonl --output_dir output_models/sft
"""

from __future__ import annotations

import math
from typing import Any

from raft import distributed
from raft.data.encoding import TokenRow, encode_rows, refuse_unknown_ids, unpack
from raft.data.loading import listed, load_rows, split_rows
from raft.data.templates import ConversationTemplate
from raft.engine.build import build_policy, keeps_documents_apart, num_embeddings, text_batching
from raft.engine.engine import Sums
from raft.engine.export import export
from raft.engine.loop import count_steps
from raft.models.forward import next_token_loss
from raft.models.loading import load_tokenizer, refuse_beyond_context
from raft.stages.common import finish, start
from raft.stages.sft_config import SFTConfig
from raft.stages.supervised import Training


def main(config: SFTConfig) -> None:
    """Train, evaluate at start, every ``eval_steps`` and at the end, and save the model to ``final/``."""
    run = start(config, "sft")
    tokenizer = load_tokenizer(config.model)
    train, held_out = load_data(config, ConversationTemplate(tokenizer, config.model.template))

    def total_steps(module: Any) -> int:
        nonlocal train, held_out
        refuse_unknown_ids([*train, *held_out], num_embeddings(module), name=config.model.model_name_or_path)
        train, held_out = as_read(config, module, train, held_out)
        return count_steps(len(train), config.training)

    engine = build_policy(config.model, config.lora, config.training, seed=config.run.seed, total_steps=total_steps)
    batching = text_batching(engine, tokenizer)
    longest = max(map(batching.length, [*train, *held_out]))
    refuse_beyond_context(engine.module.config, longest, flags="--max_length")

    def describe(metrics: Sums) -> str:
        metrics["perplexity"] = math.exp(min(metrics["loss"], 50.0))
        return f"loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}"

    training = Training("sft", train, held_out, next_token_loss, batching, describe)
    metrics = training.run(run, config, engine, tokenizer, save_steps=config.data.save_steps)
    card = f"---\nbase_model: {config.model.model_name_or_path}\ntags: [raft, sft]\n---\n# {run.path.name}\n\n"
    card += f"{config.model.model_name_or_path}, fine-tuned by `raft sft` on {len(train)} rows.\n"
    export(engine, tokenizer, run.path / "final", card=card, base_model=config.model.model_name_or_path)
    summary = {"loss": metrics.get("loss"), "perplexity": metrics.get("perplexity"), "num_train_rows": len(train)}
    finish(run, engine, summary | {"num_held_out_rows": len(held_out)})


def load_data(config: SFTConfig, template: ConversationTemplate) -> tuple[list[TokenRow], list[TokenRow]]:
    """Read and encode the data, hold out the last percent, and say what was left out."""
    data = load_rows(config.data.dataset_path, kinds={"conversation", "text"}, max_rows=config.data.num_rows)
    halves = split_rows(data.rows, config.data.validation_split_percentage)
    parts: list[list[TokenRow]] = []
    for name, rows in zip(("to train on", "held out"), halves, strict=True):
        if not rows:
            parts.append([])
            continue
        options = {"max_length": config.data.max_length, "overlong": config.data.overlong}
        encoded = encode_rows(rows, template, packing=config.data.packing, **options)  # type: ignore[arg-type]
        parts.append(encoded.rows)
        if distributed.is_main():
            made = f", in {len(encoded.rows)} rows of tokens" if len(encoded.rows) != len(rows) else ""
            print(f"{name}: {len(rows)} rows{made}" + (f"; {listed(encoded.counts)}" if encoded.counts else ""))
    if distributed.is_main() and data.skipped:
        print(f"left out: {listed(data.skipped)}")
    return parts[0], parts[1]


def as_read(
    config: SFTConfig, module: Any, train: list[TokenRow], held_out: list[TokenRow]
) -> tuple[list[TokenRow], list[TokenRow]]:
    """Undo packing, and say so, where the model would let packed documents see each other."""
    if not any(row.is_packed for row in [*train, *held_out]):
        return train, held_out
    if keeps_documents_apart(module, config.training, recomputes=config.model.gradient_checkpointing):
        return train, held_out
    apart = unpack(train), unpack(held_out)
    if distributed.is_main():
        name = f"{config.model.model_name_or_path} ({module.config.model_type})"
        print(
            f"plain texts are not packed, each has a row of its own: {name} would let the documents of a row see each "
            f"other; {len(train)} -> {len(apart[0])} training rows"
        )
    return apart
