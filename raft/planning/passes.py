"""What single passes of a model need beside its weights: counted on the meta device with the code that runs them.

Shapes: B rows, L tokens, K columns with targets, P prompts, R responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raft.data.batching import Batch, PairBatch
from raft.functional.branches import CHOSEN
from raft.functional.logprobs import entropy, kl_divergence, token_logprobs
from raft.functional.sampling import draw_tokens
from raft.models.forward import target_logits
from raft.planning.live import LiveBytes
from raft.planning.shapes import pretending
from raft.rollout.decoding import Decoder, GraphDecoder, Graphs, GrowingDecoder

LossFn = Callable[[Any, Any], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class Usage:
    """Bytes beside weights and optimizer.

    Attributes:
        live: tensors alive at a time, gradients included.
        resident: what a process has whose small freed blocks stay with it: see ``raft.planning.live``.
        kept: of these, the small blocks without gradients; still there when the pass is over.
        gradients: made by the pass.
        live_alone, resident_alone: the first two without gradients.
    """

    live: int = 0
    resident: int = 0
    kept: int = 0
    gradients: int = 0
    live_alone: int = 0
    resident_alone: int = 0

    @classmethod
    def of(cls, counted: LiveBytes) -> Usage:
        """What was counted."""
        return cls(
            counted.peak, counted.resident, counted.kept, counted.gradients, counted.alone, counted.resident_alone
        )


@contextmanager
def counting() -> Iterator[LiveBytes]:
    """Count within this, with attention that the meta device can do."""
    with pretending(), LiveBytes() as live:
        yield live


def _ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="meta")


def text_batch(rows: int, length: int, columns: int) -> Batch:
    """A micro-batch (B, L) with targets in K columns."""
    ids = _ids(rows, length)
    return Batch(ids, ids, ids, ids, _ids(columns), rows * columns)


def pair_batch(pairs: int, length: int, *, sharing: bool) -> PairBatch:
    """A micro-batch of pairs: 2B rows, or with ``sharing`` B rows that hold both responses."""
    ids = _ids(pairs if sharing else 2 * pairs, length)
    segments = torch.full_like(ids, CHOSEN) if sharing else None
    return PairBatch(ids, ids, torch.zeros(pairs, device="meta"), pairs, segments)


def training(model: Any, batch: Batch | PairBatch, loss_fn: LossFn) -> Usage:
    """Forward and backward of one micro-batch."""
    hooks = []
    with counting() as live:
        for parameter in model.parameters():
            if parameter.requires_grad:
                hooks.append(parameter.register_post_accumulate_grad_hook(lambda one: live.is_gradient(one.grad)))
        model.train()
        loss, _ = loss_fn(model, batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    for parameter in model.parameters():
        parameter.grad = None
    return Usage.of(live)


@torch.no_grad()
def evaluation(model: Any, batch: Batch | PairBatch, loss_fn: LossFn) -> Usage:
    """Loss of one micro-batch without gradients."""
    model.eval()
    with counting() as live:
        loss_fn(model, batch)
    return Usage.of(live)


@torch.no_grad()
def sampling(
    model: Any, *, prompts: int, rows: int, length: int, room: int, draw: dict[str, Any], graphs: bool
) -> Usage:
    """A pass over P prompts of L tokens, and decoding of R responses of up to ``room`` tokens.

    Args:
        draw: temperature, top_p and top_k.
        graphs: decode in buffers of fixed size, as on a GPU.
    """
    model.eval()
    answered = torch.arange(rows, device="meta")
    mask = _ids(prompts, length)
    with counting() as live:
        output = model(
            input_ids=_ids(prompts, length),
            attention_mask=mask,
            position_ids=_ids(prompts, length),
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = output.past_key_values, output.logits[answered, -1]
        del output
        decoder: Decoder = (
            GraphDecoder(Graphs(model), cache, answered, mask, room)
            if graphs
            else GrowingDecoder(model, cache, answered, mask, room)
        )
        uniforms = torch.zeros(rows, device="meta")
        logits = decoder.step(draw_tokens(logits, uniforms, **draw))
        draw_tokens(logits, uniforms, **draw)
        decoder.keep(answered)
    return Usage.of(live)


@torch.no_grad()
def scoring(model: Any, rows: int, length: int) -> Usage:
    """A reward model over B texts of L tokens."""
    model.eval()
    with counting() as live:
        model(input_ids=_ids(rows, length), attention_mask=_ids(rows, length))
    return Usage.of(live)


@torch.no_grad()
def logprobs(model: Any, rows: int, length: int, columns: int) -> Usage:
    """Log-probabilities of K tokens in each of B rows."""
    model.eval()
    with counting() as live:
        logits, labels = target_logits(model, text_batch(rows, length, columns))
        token_logprobs(logits, labels).sum(1)
    return Usage.of(live)


@torch.no_grad()
def statistics(model: Any, rows: int, length: int, columns: int) -> Usage:
    """Entropy and KL at K positions in each of B rows: logits of two models at a time."""
    model.eval()
    batch = text_batch(rows, length, columns)
    with counting() as live:
        logits, _ = target_logits(model, batch)
        initial, _ = target_logits(model, batch)
        p, p0 = logits[0].clone(), initial[0].clone()
        entropy(p), kl_divergence(p, p0)
    return Usage.of(live)
