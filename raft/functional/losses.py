"""Losses as pure functions. They return sums: the engine divides by what the whole optimizer step holds.

Shapes: B rows or pairs, K positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from raft.functional.logprobs import token_logprobs


def sft_loss(logits: torch.Tensor, labels: torch.Tensor, ignored: int = -100) -> torch.Tensor:
    """Negative log-likelihood of the labels, summed over those that count (arXiv 2304.06767, Algorithm 1, line 8).

    Args:
        logits: (B, K, V); row k predicts label k.
        labels: (B, K), ``ignored`` where there is no loss.

    Returns:
        Scalar in nats, summed.
    """
    counts = labels != ignored
    return -token_logprobs(logits, labels.where(counts, 0)).where(counts, 0.0).sum()


def bradley_terry_loss(
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood of the preferences, summed (InstructGPT, arXiv 2203.02155, eq. 1).

    Args:
        chosen_scores: (B,).
        rejected_scores: (B,).
        margin: (B,) or scalar that the difference of scores has to exceed (Llama 2, arXiv 2307.09288, eq. 2).
        label_smoothing: probability in [0, 0.5) that a label is wrong.
        centering: weight of (chosen + rejected)^2, which fixes the free offset of scores near 0
            (arXiv 2312.09244, section 2).

    Returns:
        Scalar in nats, summed over pairs.
    """
    difference = chosen_scores.float() - rejected_scores.float() - margin
    likelihood = (1 - label_smoothing) * functional.logsigmoid(difference)
    likelihood = likelihood + label_smoothing * functional.logsigmoid(-difference)
    offset = (chosen_scores.float() + rejected_scores.float()).square()
    return (centering * offset - likelihood).sum()
