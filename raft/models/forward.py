"""The forward pass of a language model over a training batch: logits where some row has a target, nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from raft.data.batching import Batch, collate
from raft.data.encoding import pack
from raft.functional.losses import sft_loss
from raft.memory import is_out_of_memory
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


@torch.no_grad()
def reads_packed(model: Any, *, num_rows: int) -> bool:
    """Whether a language model in eval mode gives documents packed into rows the logits that each has alone.

    transformers tells who sees whom from restarting positions, but not for every architecture, and FlashAttention
    not for several rows. The first document of a row has nothing before it: what changes its logits is rounding.

    Args:
        num_rows: of the batch that is tried, 1 or 2.
    """
    device = model.get_input_embeddings().weight.device
    documents = [[[4, 5, 6, 7, 8], [9, 10, 11, 12]], [[13, 14, 15, 16], [17, 18, 19]]][:num_rows]
    batch = collate([joined for row in documents for joined in pack(row, 9)], pad_token_id=0).to(device)
    batch = replace(batch, columns=torch.arange(batch.input_ids.shape[1] - 1, device=device))
    flash = "flash" in str(model.config._attn_implementation)  # takes no fp32
    rounding, others = [0.0], [0.0]
    with torch.autocast(device.type, torch.bfloat16, enabled=flash):
        try:
            logits, _ = target_logits(model, batch)
        except (RuntimeError, TypeError, ValueError) as error:  # it takes no positions
            if is_out_of_memory(error):
                raise
            return False
        for i, row in enumerate(documents):
            start = 0
            for ids in row:
                alone = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, :-1]
                difference = _difference(logits[i, start : start + len(ids) - 1], alone)
                (others if start else rounding).append(difference)
                start += len(ids)
    tolerance = (1e-4 if logits.dtype == torch.float32 else 1e-2) + 4 * max(rounding)
    return all(difference <= min(tolerance, 0.2) for difference in rounding + others)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of logits, relative to their spread; what all tokens have in common says nothing."""
    found, expected = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (found, expected))
    return float((found - expected).norm() / expected.norm())
