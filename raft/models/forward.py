"""The forward pass of a language model over a training batch: logits where some row has a target, nowhere else."""

from __future__ import annotations

from typing import Any

import torch

from raft.data.batching import Batch
from raft.functional.losses import sft_loss
from raft.models.documents import documents_apart


def target_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, K, V) for the K columns that matter, and the labels (B, K) they predict."""
    with documents_apart(model, batch.documents):
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            # With a cache, transformers ignores restarting positions: packed documents would see each other.
            use_cache=False,
            logits_to_keep=batch.columns,
        )
    return output.logits, batch.labels[:, batch.columns + 1]


def next_token_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The engine's loss function for supervised fine-tuning: see ``raft.functional.losses.sft_loss``."""
    logits, labels = target_logits(model, batch)
    return sft_loss(logits, labels), {}
