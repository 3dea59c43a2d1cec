"""Reward modelling: learn from preferences what a good response is (Bradley-Terry, arXiv 2304.06767, section 2).

The model is the base model with a linear score head, read at the EOS that closes the response. LoRA by default:
adapters beside every linear layer, and the head trained whole.

    raft reward --dataset_path data/hh_rlhf.jsonl --output_dir output_models/reward
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raft import distributed
from raft.arguments import to_yaml
from raft.config import TrainingConfig
from raft.data.batching import Batching, PairBatch, collate_pairs, paired_length, plan_epoch, shared_length
from raft.data.encoding import PairRow, encode_pairs
from raft.data.loading import Dataset, listed, load_rows, split_rows
from raft.data.templates import ConversationTemplate
from raft.engine.engine import Engine, LossFn, Sums
from raft.engine.export import export
from raft.engine.loop import count_steps, micro_batches, rows_per_step
from raft.errors import UserError
from raft.functional.losses import bradley_terry_loss
from raft.models.loading import (
    MODEL_FLAG,
    brings_score_head,
    fingerprint,
    load_classifier,
    load_tokenizer,
)
from raft.models.lora import attach
from raft.models.scoring import ScoringModel, can_branch, has_score_head, initialize_head, use_float32_head
from raft.precision import resolve_dtype
from raft.rewards.contract import RewardContract
from raft.rewards.examples import choose_examples
from raft.rewards.fitting import context_length, refuse_foreign_tokenizer
from raft.rewards.reading import with_rendering
from raft.rewards.reward_model import RewardModel
from raft.stages.common import finish, start
from raft.stages.reward_config import PreferenceConfig, RewardModelingConfig
from raft.stages.supervised import Training


def main(config: RewardModelingConfig) -> None:
    """Train, evaluate at start, every ``eval_steps`` and at the end, and save the reward model to ``final/``."""
    run = start(config, "reward")
    tokenizer = load_tokenizer(config.model)
    template = ConversationTemplate(tokenizer, config.model.template)
    data = load_rows(config.data.dataset_path, kinds={"preference"}, max_rows=config.data.num_rows)
    if config.data.margin_weight and all(row.margin is None for row in data.rows):
        found = f"found {config.data.margin_weight:g}, but no row of {config.data.dataset_path} has a margin"
        raise UserError(f"--margin_weight: {found}.")
    classifier = load_model(config, tokenizer)
    config = within_context(config, classifier)
    train, held_out = encode(data, config.data, template)

    engine, base, sharing = build(config, classifier, total_steps=count_steps(len(train), config.training))
    loss_fn = preference_loss(config.data)
    batching = Batching(
        shared_length if sharing else paired_length,
        lambda pairs: collate_pairs(pairs, tokenizer.pad_token_id, sharing=sharing),
    )
    if distributed.is_main():
        padding = padding_share(train, config.training, config.run.seed, batching)
        saved = f"share their prompt pass: {share_in_common(train):.0%} fewer tokens" if sharing else "go apart"
        print(f"chosen and rejected {saved}; {padding:.0%} of the positions are padding")

    def describe(metrics: Sums) -> str:
        return f"accuracy {metrics['accuracy']:.3f}, loss {metrics['loss']:.4f}"

    training = Training("reward", train, held_out, loss_fn, batching, describe)
    metrics = training.run(run, config, engine, tokenizer, save_steps=config.data.save_steps)
    contract = write_contract(config, engine, tokenizer, held_out, metrics, base)
    final = run.path / "final"
    export(engine, tokenizer, final, card=card(contract, config), base_model=config.model.model_name_or_path)
    if distributed.is_main():
        contract.save(final)
    summary = {"accuracy": contract.accuracy, "loss": metrics.get("loss"), "num_train_pairs": len(train)}
    summary |= {"num_held_out_pairs": len(held_out), "num_trained_parameters": num_trained_parameters(engine)}
    finish(run, engine, summary)


def preference_loss(config: PreferenceConfig) -> LossFn:
    """The engine's loss function: Bradley-Terry, with accuracy, margin and scores to report."""

    def loss_fn(model: Any, batch: PairBatch) -> tuple[torch.Tensor, Sums]:
        scores = model(batch.input_ids, batch.attention_mask, batch.segments)
        chosen, rejected = scores.chunk(2)
        loss = bradley_terry_loss(
            chosen,
            rejected,
            margin=config.margin_weight * batch.margins,
            label_smoothing=config.label_smoothing,
            centering=config.centering,
        )
        sums = {
            "accuracy": (chosen > rejected).sum(),  # ties are wrong
            "margin": (chosen - rejected).sum(),
            "score": scores.sum() / 2,
            "score_squared": scores.square().sum() / 2,
        }
        return loss, {name: value.item() for name, value in sums.items()}

    return loss_fn


def within_context(config: RewardModelingConfig, classifier: Any) -> RewardModelingConfig:
    """The same flags, but with no more tokens by default than the model has positions for; prints it.

    Raises:
        UserError: if a flag asks for more.
    """
    before, data = config.data.max_length, config.data.within(context_length(classifier))
    if data.max_length < before and distributed.is_main():
        limit = data.max_length
        print(f"--max_length: reads {limit} tokens instead of {before}, since the model has no more positions")
    return replace(config, data=data)


def encode(
    data: Dataset, config: PreferenceConfig, template: ConversationTemplate
) -> tuple[list[PairRow], list[PairRow]]:
    """Token ids of the preference pairs, the last percent held out; prints what was dropped."""
    train_rows, held_out_rows = split_rows(data.rows, config.validation_split_percentage)
    sides = []
    for name, rows in (("to train on", train_rows), ("held out", held_out_rows)):
        pairs, counts = (
            encode_pairs(rows, template, max_length=config.max_length, overlong=config.overlong) if rows else ([], {})
        )
        sides.append(pairs)
        if distributed.is_main():
            print(f"{name}: {len(pairs)} pairs" + (f"; {listed(counts)}" if counts else ""))
    if distributed.is_main() and data.skipped:
        print(f"left out: {listed(data.skipped)}")
    return sides[0], sides[1]


def load_model(config: RewardModelingConfig, tokenizer: Any) -> Any:
    """The model with its score head, on the CPU.

    Raises:
        UserError: if what was trained from it could not be loaded again: it pools as encoders do, or the tokenizer has
            more tokens than its embedding.
    """
    torch.manual_seed(config.run.seed)
    classifier: Any = load_classifier(config.model, num_labels=1)
    where = f"{MODEL_FLAG}: {config.model.model_name_or_path}"
    if not has_score_head(classifier):
        raise UserError(
            f"{where}: its classifier ({type(classifier).__name__}) pools by itself, as those of encoders do; "
            "raft reward trains decoders, whose score is read at one token."
        )
    refuse_foreign_tokenizer(classifier, tokenizer, where=where)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    use_float32_head(classifier)
    if not brings_score_head(config.model):
        initialize_head(classifier, config.data.score_head_init)
    return classifier


def build(config: RewardModelingConfig, classifier: Any, total_steps: int) -> tuple[Engine, str, bool]:
    """The model (and adapters) in an engine; its base's fingerprint; whether prompts are shared."""
    base, sharing = fingerprint(classifier), config.data.share_prompts and can_branch(classifier)
    model: Any = classifier
    if config.lora.use_lora:
        model = attach(classifier, config.lora, task="SEQ_CLS", modules_to_save=["score"])
    engine = Engine(
        ScoringModel(model),
        config.training,
        total_steps=total_steps,
        bf16=config.model.dtype == "bf16",
        gradient_checkpointing=config.model.gradient_checkpointing,
    )
    return engine, base, sharing


def num_trained_parameters(engine: Engine) -> int:
    """Parameters that the optimizer changes; ZeRO-3 keeps their number beside the parts."""
    trained = (parameter for parameter in engine.module.parameters() if parameter.requires_grad)
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)


def share_in_common(pairs: Sequence[PairRow]) -> float:
    """Share of all tokens that need not go through the model a second time."""
    return sum(pair.num_shared for pair in pairs) / sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)


def padding_share(pairs: Sequence[PairRow], training: TrainingConfig, seed: int, batching: Batching) -> float:
    """Share of this rank's positions that are padding, in the first 50 steps: smaller micro-batches have less."""
    steps = plan_epoch(len(pairs), rows_per_step=rows_per_step(training), seed=seed, epoch=0)[:50]
    size = training.per_device_train_batch_size
    masks = [
        batch.attention_mask
        for step in steps
        for batch in micro_batches(pairs, step, batching, micro_batch_size=size)
    ]
    return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)


def write_contract(
    config: RewardModelingConfig,
    engine: Engine,
    tokenizer: Any,
    held_out: Sequence[PairRow],
    metrics: Sums,
    base: str,
) -> RewardContract:
    """What scoring has to know of the model: how texts are read, how it did on held-out pairs, and a few of them."""
    lora, std = config.lora.use_lora, spread(metrics)
    contract = RewardContract(
        template=config.model.template,
        max_length=config.data.max_length,
        label=0,
        body_dtype=resolve_dtype(config.model.dtype),
        base_model=config.model.model_name_or_path if lora else None,
        base_model_fingerprint=base if lora else None,
        accuracy=metrics.get("accuracy"),
        num_pairs=len(held_out) or None,
        score_mean=metrics.get("score"),
        score_std=std,
    )
    contract = with_rendering(contract, tokenizer)
    if std is None:
        return contract
    with engine.generating() as module:
        assert isinstance(module, ScoringModel), "what this stage trains"
        scorer = RewardModel(module, tokenizer, contract, batch_size=config.training.per_device_train_batch_size)
        examples = choose_examples(
            held_out,
            scorer.score_rows,
            count=config.data.num_stored_examples,
            max_length=config.data.max_length,
            spread=std,
        )
    return replace(contract, examples=examples)


def spread(metrics: Sums) -> float | None:
    """Standard deviation of the scores from their mean and mean square."""
    if "score" not in metrics:
        return None
    return math.sqrt(max(0.0, metrics["score_squared"] - metrics["score"] ** 2))


def card(contract: RewardContract, config: RewardModelingConfig) -> str:
    """README.md of the reward model: what it is, how it was trained and measured."""
    accuracy = "not measured" if contract.accuracy is None else f"{contract.accuracy:.1%} of {contract.num_pairs} pairs"
    return f"""---
library_name: {"peft" if config.lora.use_lora else "transformers"}
base_model: {config.model.model_name_or_path}
tags: [reward-model, raft]
---
# Reward model

Bradley-Terry reward model on {config.model.model_name_or_path}, trained by `raft reward` on
`{Path(config.data.dataset_path).name}`. Higher is better; the score is read at the EOS that closes the response.

Held-out accuracy: {accuracy} (ties count as wrong).

```yaml
{to_yaml(config)}```
"""
