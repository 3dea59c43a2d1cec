"""Log-probabilities of tokens.

Shapes: ... any leading dimensions, V vocabulary.
"""

from __future__ import annotations

import torch


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token under the distribution its logits describe, in fp32.

    Args:
        logits: (..., V), any float type.
        tokens: (...), ids in 0..V-1.
        temperature: the logits are divided by it first.

    Returns:
        (...), at most 0.
    """
    flat = logits.float().reshape(-1, logits.shape[-1]) / temperature
    return -torch.nn.functional.cross_entropy(flat, tokens.reshape(-1), reduction="none").reshape(tokens.shape)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distributions that logits (..., V) describe; shape (...)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl_divergence(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """KL(p || p0) in nats of next-token distributions, summed over the whole vocabulary.

    The exact expectation over the next token of Schulman's k1, log(p/p0): the same mean without its noise, and at
    least 0 (arXiv 2504.10637).

    Args:
        logits: (..., V), of p.
        reference_logits: (..., V), of p0.

    Returns:
        (...).
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    reference = torch.log_softmax(reference_logits.float(), dim=-1)
    return (logprobs.exp() * (logprobs - reference)).sum(-1)
