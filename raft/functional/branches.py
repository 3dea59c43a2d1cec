"""A pair of responses in one row: what both begin with, then the rest of the one, then the rest of the other.

The tokens that chosen and rejected have in common go through the model once. Attention and positions are such that
each response sees what it would see in a row of its own, so scores and gradients are the same.

Shapes: B pairs, L positions. ``segments`` (B, L) says what stands where: SHARED, CHOSEN, REJECTED, then PADDING.
"""

from __future__ import annotations

import torch

SHARED, CHOSEN, REJECTED, PADDING = range(4)


def branch_attention(segments: torch.Tensor) -> torch.Tensor:
    """Who sees whom: (B, 1, L, L), True where query q (third axis) sees key k: what came before it in its response.

    Padding sees the shared part and itself, so that no row of the softmax is empty.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    own = segments[:, None, :] == segments[:, :, None]
    return (causal & (own | (segments[:, None, :] == SHARED)))[:, None]


def branch_positions(segments: torch.Tensor) -> torch.Tensor:
    """Position of each token in a row of its own, (B, L): the rejected rest starts where the chosen rest does."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    num_chosen = (segments == CHOSEN).sum(1, keepdim=True)
    return torch.where(segments >= REJECTED, places - num_chosen, places)


def branch_ends(segments: torch.Tensor) -> torch.Tensor:
    """Where the chosen and the rejected response end, (2, B)."""
    num_shared, num_chosen, num_rejected = ((segments == part).sum(1) for part in (SHARED, CHOSEN, REJECTED))
    end = num_shared + num_chosen - 1
    return torch.stack([end, end + num_rejected])
