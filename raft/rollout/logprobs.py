"""Log-probability of given responses under a model, batched and sorted by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raft import distributed
from raft.data.batching import collate
from raft.data.encoding import TokenRow
from raft.functional.logprobs import token_logprobs
from raft.models.forward import target_logits


@torch.no_grad()
def response_logprobs(
    model: Any, rows: Sequence[TokenRow], *, batch_size: int, pad_token_id: int, name: str
) -> list[float]:
    """Sum of the log-probabilities of each row's targets, in nats, computed by all ranks together.

    Args:
        model: a causal language model in eval mode with whole weights.
        rows: prompt and response; the response's tokens are the targets.
        name: unique in the run; names the counter that ranks take batches from.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].tokens), i))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    device = next(model.parameters()).device
    found: dict[int, float] = {}
    for number in distributed.take_chunks(name, len(batches)):
        batch = collate([rows[i] for i in batches[number]], pad_token_id).to(device)
        logits, labels = target_logits(model, batch)
        counts = labels >= 0
        sums = token_logprobs(logits, labels.clamp(min=0)).where(counts, 0.0).sum(1)
        found.update(zip(batches[number], sums.tolist(), strict=True))
    gathered = {i: value for part in distributed.all_gather(found) for i, value in part.items()}
    return [gathered[i] for i in range(len(rows))]
