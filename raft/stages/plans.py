"""What ``raft sft`` and ``raft reward`` will need, from flags and data: no weight is loaded, nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from raft.data.batching import paired_length, shared_length
from raft.data.encoding import PairRow, TokenRow, encode_pairs, encode_rows, unpack
from raft.data.loading import load_rows, split_rows
from raft.functional.engine_memory import Engine, EngineBytes, engine_bytes, logits_bytes
from raft.functional.losses import bradley_terry_loss
from raft.models.forward import next_token_loss
from raft.planning import passes
from raft.planning.estimate import Phase, Plan, Work, training_phases
from raft.planning.models import language_model, score_model, shape_of
from raft.planning.parts import (
    WIDTHS,
    Ground,
    checkpoint_bytes,
    disk,
    engine_of,
    export_bytes,
    find_template,
    joins,
    largest_text_batch,
    num_steps,
    tokenizer_bytes,
)
from raft.precision import resolve_dtype
from raft.rewards.fitting import context_length
from raft.stages.reward_config import RewardModelingConfig
from raft.stages.sft_config import SFTConfig


def plan_sft(config: SFTConfig, ground: Ground) -> Plan:
    """Supervised fine-tuning."""
    dtype, size = resolve_dtype(config.model.dtype), config.training.per_device_train_batch_size
    shape = shape_of(config.model, list(ground.model_shape))
    model = language_model(shape, config.model, config.lora, dtype)
    (train, num_rows), joined = _text_rows(config, ground), joins(config.model, ground)
    rows, length, columns = (
        largest_text_batch(train, size, joined=joined)
        if train
        else (size, config.data.max_length, config.data.max_length - 1)
    )
    engine = engine_of(model, config.training, dtype, ground)
    usage = passes.training(model, passes.text_batch(rows, length, columns), next_token_loss)
    logits = logits_bytes(rows, columns, shape.get_text_config().vocab_size, WIDTHS[dtype])
    facts = [
        f"{num_rows} training rows; the largest micro-batch has {rows} rows of {length} tokens, {columns} with a loss"
        + (", on average" if joined and train else "")
        + ("" if train else " (the limit: without a tokenizer, rows are not measured)")
    ]
    if (num_texts := len(unpack(train))) > len(train):
        facts.append(f"texts are packed; a model that would let them see each other gets a row for each, {num_texts}")
    return _plan(
        config, model, engine, usage, facts, num_rows, {"logits of a micro-batch": logits}, rows, length, columns
    )


def plan_reward(config: RewardModelingConfig, ground: Ground) -> Plan:
    """Reward modelling."""
    dtype, size = resolve_dtype(config.model.dtype), config.training.per_device_train_batch_size
    shape = shape_of(config.model, list(ground.model_shape))
    model = score_model(shape, config.model, config.lora, dtype)
    config = replace(config, data=config.data.within(context_length(model.model)))
    pairs, num_pairs = _pairs(config, ground)
    sharing, length = False, config.data.max_length
    if pairs:
        longest = sorted(pairs, key=lambda pair: -shared_length(pair))[:size]
        size, length = len(longest), max(map(paired_length, longest))
        together = max(map(shared_length, longest))
        sharing = config.data.share_prompts and config.model.attn_implementation != "flash_attention_2"
        sharing = sharing and together < 2 * length
        length = together if sharing else length
    engine = engine_of(model, config.training, dtype, ground)
    usage = passes.training(model, passes.pair_batch(size, length, sharing=sharing), _pair_loss)
    rows = size if sharing else 2 * size
    facts = [f"{num_pairs} training pairs; the largest micro-batch has {rows} rows of {length} tokens"]
    return _plan(config, model, engine, usage, facts, num_pairs, {}, rows, length, 1)


def _pair_loss(model: Any, batch: Any) -> tuple[torch.Tensor, None]:
    chosen, rejected = model(batch.input_ids, batch.attention_mask, batch.segments).chunk(2)
    return bradley_terry_loss(chosen, rejected), None


def _plan(
    config: Any,
    model: Any,
    engine: Engine,
    usage: passes.Usage,
    facts: list[str],
    num_rows: int,
    further: dict[str, int],
    rows: int,
    length: int,
    columns: int,
) -> Plan:
    held, training = engine_bytes(engine), config.training
    steps = num_steps(num_rows, training, engine.num_processes)
    steps = steps if training.max_steps < 0 else min(steps, training.max_steps)
    tokenizer = tokenizer_bytes(config.model.model_name_or_path)
    export = export_bytes(engine, adapter=config.lora.use_lora, tokenizer=tokenizer)
    checkpoint = checkpoint_bytes(engine, model)
    phases = [
        loading_phase(config, engine, held),
        *training_phases(held, 0, usage),
        Phase("saving", held.resting + held.gathered + export),
    ]
    return Plan(
        facts=[*facts, f"{steps} optimizer steps on {engine.num_processes} process(es), ZeRO-{engine.stage}"],
        parts=engine_parts(engine, held) | {"activations of a micro-batch": usage.live_alone} | further,
        phases=phases,
        disk=disk(
            {"final": export, "metrics": 400 * steps},
            checkpoint=checkpoint,
            keep=1 if config.data.save_steps else 0,
            export=export,
        ),
        work=Work(
            {"loading": 1, "saving": 1}, {"micro-batch": training.gradient_accumulation_steps, "step": 1}, steps, "step"
        ),
        sizes={"train_rows": rows, "train_length": length, "train_columns": columns},
    )


def loading_phase(config: Any, engine: Engine, held: EngineBytes) -> Phase:
    """The model in the precision that it is loaded in, and what making its engine takes beside."""
    lora_in_bf16 = config.lora.use_lora and engine.width < 4
    loaded = (2 if lora_in_bf16 else 4) * engine.num_parameters
    return Phase("loading", max(loaded, held.weights + held.building))


def engine_parts(engine: Engine, held: EngineBytes) -> dict[str, int]:
    """An engine's memory by what it is."""
    parts = {
        "weights": held.weights,
        "fp32 masters": held.masters,
        "Adam's moments": held.moments,
        "buffers between steps": held.buffers,
        "gradients": engine.width * engine.num_trained,
        "reducing gradients, optimizer step": max(held.reducing, held.stepping) - engine.width * engine.num_trained,
        "of these in host memory": -held.host,
    }
    return {name: size for name, size in parts.items() if size}


def _text_rows(config: SFTConfig, ground: Ground) -> tuple[list[TokenRow], int]:
    """Training rows where there is a tokenizer, and how many there are."""
    rows = load_rows(config.data.dataset_path, kinds={"conversation", "text"}, max_rows=config.data.num_rows).rows
    train, _ = split_rows(rows, config.data.validation_split_percentage)
    template = find_template(config.model, ground)
    if template is None:
        return [], len(train)
    options: dict[str, Any] = {"max_length": config.data.max_length, "overlong": config.data.overlong}
    encoded = encode_rows(train, template, packing=config.data.packing, **options).rows
    return encoded, len(encoded)


def _pairs(config: RewardModelingConfig, ground: Ground) -> tuple[list[PairRow], int]:
    rows = load_rows(config.data.dataset_path, kinds={"preference"}, max_rows=config.data.num_rows).rows
    train, _ = split_rows(rows, config.data.validation_split_percentage)
    template = find_template(config.model, ground)
    if template is None:
        return [], len(train)
    pairs, _ = encode_pairs(train, template, max_length=config.data.max_length, overlong=config.data.overlong)
    return pairs, len(pairs)
