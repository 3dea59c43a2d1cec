"""What a model makes of given responses: their log-probability, its entropy, its distance to the initial policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from raft.data.batching import collate
from raft.data.encoding import TokenRow
from raft.functional.logprobs import entropy, kl_divergence, token_logprobs
from raft.journal import in_order, share
from raft.memory import in_halves
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

    def sums(part: Sequence[int]) -> list[float]:
        batch = collate([rows[i] for i in part], pad_token_id).to(device)
        logits, labels = target_logits(model, batch)
        counts = labels >= 0
        found: list[float] = token_logprobs(logits, labels.clamp(min=0)).where(counts, 0.0).sum(1).tolist()
        return found

    def work(number: int) -> list[float]:
        batch = batches[number]
        return in_halves(lambda part: sums(batch[part.start : part.stop]), len(batch), what="responses")

    found = share(name, len(batches), work, key=lambda number: [rows[i].tokens for i in batches[number]])
    return in_order(batches, found)


def perplexity(model: Any, rows: Sequence[TokenRow], *, batch_size: int, pad_token_id: int, name: str) -> float:
    """exp of the mean negative log-probability of the rows' targets, computed by all ranks together.

    Arguments as for :func:`response_logprobs`; at least one target.
    """
    logprobs = response_logprobs(model, rows, batch_size=batch_size, pad_token_id=pad_token_id, name=name)
    return math.exp(min(-sum(logprobs) / sum(row.num_targets for row in rows), 50.0))


@contextmanager
def initial_policy(policy: Any, copy: Any | None) -> Iterator[Any]:
    """The policy as it was before training: a frozen copy lent to its device, or its adapters switched off.

    Args:
        policy: the trained module; has ``disable_adapter`` where there is no copy.
        copy: the initial model, which goes back to the device it came from.
    """
    if copy is None:
        with policy.disable_adapter():
            yield policy
        return
    home = next(copy.parameters()).device
    copy.to(next(policy.parameters()).device)
    try:
        yield copy
    finally:
        copy.to(home)


@torch.no_grad()
def policy_statistics(
    policy: Any, reference: Any | None, rows: Sequence[TokenRow], *, batch_size: int, pad_token_id: int
) -> dict[str, float]:
    """Entropy of the policy and its KL to the initial policy where the rows' targets are, by this rank alone.

    Both are of the raw distributions at temperature 1 over the whole vocabulary, whatever the rows were sampled
    with: exact at every position (not k1 or k3 of the tokens drawn, which are biased at any other temperature).
    What is estimated by sampling is the choice of positions alone.

    Args:
        policy, reference: as for :func:`initial_policy`; eval mode, whole weights.
        rows: at least one target in all.

    Returns:
        In nats: ``entropy`` and ``kl``, means over tokens; ``kl_response``, mean over rows of the sum.
    """
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    sums, num_tokens = torch.zeros(2, dtype=torch.float64), 0
    for at in range(0, len(ordered), batch_size):
        batch = collate(ordered[at : at + batch_size], pad_token_id).to(next(policy.parameters()).device)
        logits, labels = target_logits(policy, batch)
        with initial_policy(policy, reference) as initial:
            reference_logits, _ = target_logits(initial, batch)
        for p, p0, counts in zip(logits, reference_logits, labels >= 0, strict=True):  # whole batches are large in fp32
            parts = entropy(p[counts]), kl_divergence(p[counts], p0[counts])
            sums += torch.stack([part.double().sum() for part in parts]).cpu()
            num_tokens += int(counts.sum())
    total_entropy, total_kl = sums.tolist()
    return {
        "entropy": total_entropy / num_tokens,
        "kl": total_kl / num_tokens,
        "kl_response": total_kl / len(rows),
    }
