"""Rows of different lengths as documents of one row, each blind to the others: no position is padding.

On a CPU padding costs what text costs. transformers keeps packed documents apart by a mask over the whole row, which
still computes every product of a query and a key; here each document has an attention of its own.

Shapes: B rows, T tokens of a row, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raft.models.loading import attends_to_all

WITHIN_DOCUMENTS = "raft_within_documents"


def attention_within_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal scaled dot-product attention inside each document of a row.

    Args:
        query: (1, H, T, size).
        key, value: (1, key heads, T, size).
        lengths: of the documents, T together.

    Returns:
        (1, T, H, size).
    """
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(*(tensor.split(list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@contextmanager
def documents_apart(model: Any, lengths: Sequence[int] | None) -> Iterator[None]:
    """Let the documents of the row that goes through the model not see each other; without ``lengths`` do nothing."""
    if lengths is None:
        yield
        return
    config = getattr(model, "module", model).config  # DeepSpeed's engine has a config of its own
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(WITHIN_DOCUMENTS, partial(attention_within_documents, lengths=lengths))
    config._attn_implementation = WITHIN_DOCUMENTS
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def reads_documents(model: Any) -> bool:
    """Whether a language model in eval mode gives the documents of one row the logits that each has alone.

    Every layer has to attend to all that went before in its document, by sdpa. Recomputed layers would be without
    :func:`documents_apart`. What configurations do not tell (positions that the model counts itself, recurrent
    layers) a try shows.
    """
    if not attends_to_all(model.config) or model.config._attn_implementation != "sdpa":
        return False
    device = model.get_input_embeddings().weight.device
    documents = [torch.tensor([ids], device=device) for ids in ([4, 5, 6], [7, 8])]
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=device)
    try:
        with documents_apart(model, [3, 2]):
            together = model(input_ids=torch.cat(documents, 1), position_ids=positions, use_cache=False).logits
    except (RuntimeError, TypeError, ValueError):  # it takes no positions
        return False
    apart = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in documents], 1)
    tolerance = 1e-3 if apart.dtype == torch.float32 else 5e-2
    return bool((together - apart).float().norm() <= tolerance * apart.float().norm())
