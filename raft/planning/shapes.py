"""Models by their configuration alone: every parameter has its shape and precision, and takes no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional


class CountedAttention(torch.autograd.Function):
    """Fused attention as far as memory goes: what the kernel makes and keeps for its backward pass.

    That is query, key, value, output, one number a query and head, and the mask in the precision of the query.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, heads, L, size) -> the same, laid out as the kernels do."""
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, output, query.new_empty(rows, heads, length, dtype=torch.float))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of query, key and value."""
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def counted_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """In place of ``scaled_dot_product_attention``, whose kernels the meta device does not have."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    found: torch.Tensor = CountedAttention.apply(query, key, value, attn_mask)
    return found


class CountedExperts(torch.autograd.Function):
    """What experts multiply as far as memory goes, in any precision; the meta device has it in bfloat16 alone."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Tokens (S, in) by experts (E, in, out) -> (S, out)."""
        ctx.save_for_backward(tokens, weight)
        return tokens.new_empty(len(tokens), weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of both, where they are wanted."""
        return tuple(
            torch.empty_like(one) if wanted else None
            for one, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        )


def counted_experts(tokens: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
    """In place of ``grouped_mm``."""
    found: torch.Tensor = CountedExperts.apply(tokens, weight)
    return found


def autocast(device_type: str, *args: Any, **options: Any) -> Any:
    """In place of ``torch.autocast``, which does not know the meta device; adapters of experts switch it off there."""
    return nullcontext() if device_type == "meta" else torch.amp.autocast_mode.autocast(device_type, *args, **options)


@contextmanager
def pretending() -> Iterator[None]:
    """Within this, models on the meta device can run: they have shapes and no values, and take no memory."""
    stand_ins: list[tuple[Any, str, Any]] = [
        (functional, "scaled_dot_product_attention", counted_attention),
        (functional, "grouped_mm", counted_experts),
        (torch, "autocast", autocast),
    ]
    with ExitStack() as stack:
        for module, name, stand_in in stand_ins:
            if hasattr(module, name):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, stand_in)
        yield


def count(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Parameters of a module, tied ones once; with ``trained`` only those with a gradient."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def num_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters in the precisions they have."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
