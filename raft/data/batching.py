"""Token rows to tensors, and which rank takes which rows in which optimizer step.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from raft.data.encoding import PairRow, TokenRow
from raft.functional.branches import CHOSEN, PADDING, REJECTED, SHARED

IGNORED = -100
BatchT = TypeVar("BatchT", "Batch", "PairBatch")


def _moved(batch: BatchT, device: torch.device) -> BatchT:
    tensors: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in vars(batch).items() if torch.is_tensor(v)}
    return replace(batch, **tensors)


@dataclass(frozen=True)
class Batching:
    """How rows become micro-batches.

    Attributes:
        length: tokens of a row, by which rows are put together.
        collate: some rows to a batch with a ``weight``.
        padded: whether it pads rows to the longest.
    """

    length: Callable[[Any], int]
    collate: Callable[[Sequence[Any]], Any]
    padded: bool = True


@dataclass(frozen=True)
class Batch:
    """A micro-batch of language-model rows, aligned at their first target.

    Attributes:
        input_ids: (B, L).
        attention_mask: (B, L), or None where rows are packed and positions alone keep documents apart.
        position_ids: (B, L).
        labels: (B, L), IGNORED where there is no loss; the label at position t is predicted from position t - 1.
        columns: (K,) positions whose next token some row is trained on: the only ones that need logits.
        weight: number of targets, which the optimizer step's loss is normalised by.
        documents: lengths of the documents that B=1 row is made of, where attention goes document by document.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor
    labels: torch.Tensor
    columns: torch.Tensor
    weight: int
    documents: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of preferences: rows 0..B-1 are chosen, rows B..2B-1 their rejected counterparts.

    With ``segments``, a row holds both responses of a pair (see ``raft.functional.branches``): B rows, not 2B.

    Attributes:
        input_ids: (2B, L) or (B, L), padded on the right.
        attention_mask: as input_ids.
        margins: (B,).
        weight: number of pairs that count.
        segments: (B, L), or None where every response has a row of its own.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    margins: torch.Tensor
    weight: int
    segments: torch.Tensor | None = None

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on another device."""
        return _moved(self, device)


def collate(rows: Sequence[TokenRow], pad_token_id: int) -> Batch:
    """Stack rows into a batch.

    Rows are shifted so that their first targets share a column (prompts are padded on the left, responses on the
    right): then few columns need logits. Packed rows are padded on the right, every pad a document of its own.
    """
    packed = any(row.positions is not None for row in rows)
    first = [0 if packed else row.trained.index(True) if any(row.trained) else 0 for row in rows]
    start = max(first)
    length = start + max(len(row.tokens) - f for row, f in zip(rows, first, strict=True))
    input_ids = torch.full((len(rows), length), pad_token_id)
    mask, positions = (
        torch.zeros(len(rows), length, dtype=torch.long),
        torch.zeros(len(rows), length, dtype=torch.long),
    )
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, f) in enumerate(zip(rows, first, strict=True)):
        here = slice(start - f, start - f + len(row.tokens))
        tokens = torch.tensor(row.tokens)
        place = torch.tensor(row.positions) if row.positions is not None else torch.arange(len(tokens))
        input_ids[i, here], mask[i, here], positions[i, here] = tokens, 1, place
        labels[i, here] = torch.where(torch.tensor(row.trained) & (place > 0), tokens, IGNORED)
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long)
    weight = int((labels != IGNORED).sum())
    return Batch(input_ids, None if packed else mask, positions, labels, columns, weight)


def collate_joined(rows: Sequence[TokenRow]) -> Batch:
    """Put rows one behind the other into a single row, without padding; packed rows are several documents each."""
    positions = [place for row in rows for place in (row.positions or range(len(row.tokens)))]
    tokens = [token for row in rows for token in row.tokens]
    starts = [i for i, place in enumerate(positions) if place == 0]
    documents = tuple(end - start for start, end in itertools.pairwise([*starts, len(tokens)]))
    joined = TokenRow(tokens, [trained for row in rows for trained in row.trained], positions)
    return replace(collate([joined], pad_token_id=0), documents=documents)


def collate_pairs(pairs: Sequence[PairRow], pad_token_id: int, *, sharing: bool = False) -> PairBatch:
    """Stack preferences into one batch, padded on the right.

    Args:
        sharing: put both responses of a pair into one row behind what they have in common, if the batch then has
            fewer positions, padding included.
    """
    margins = torch.tensor([pair.margin for pair in pairs])
    if sharing and max(map(shared_length, pairs)) < 2 * max(map(paired_length, pairs)):
        input_ids, attention_mask = pad_right([_in_one_row(pair) for pair in pairs], pad_token_id)
        segments, _ = pad_right([_segments(pair) for pair in pairs], PADDING)
        return PairBatch(input_ids, attention_mask, margins, len(pairs), segments)
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    input_ids, attention_mask = pad_right(sequences, pad_token_id)
    return PairBatch(input_ids, attention_mask, margins, len(pairs))


def _in_one_row(pair: PairRow) -> list[int]:
    return [*pair.chosen, *pair.rejected[pair.num_shared :]]


def _segments(pair: PairRow) -> list[int]:
    num_chosen, num_rejected = len(pair.chosen) - pair.num_shared, len(pair.rejected) - pair.num_shared
    return [SHARED] * pair.num_shared + [CHOSEN] * num_chosen + [REJECTED] * num_rejected


def paired_length(pair: PairRow) -> int:
    """Tokens of a pair's longer side: what its rows take."""
    return max(len(pair.chosen), len(pair.rejected))


def shared_length(pair: PairRow) -> int:
    """Tokens of a pair in one row, what the responses have in common once."""
    return len(pair.chosen) + len(pair.rejected) - pair.num_shared


def pad_right(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (B, L), padded on the right."""
    length = max(map(len, sequences))
    input_ids = torch.full((len(sequences), length), pad_token_id)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        input_ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return input_ids, mask


def pad_left(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (B, L), padded on the left."""
    reversed_ids, reversed_mask = pad_right([sequence[::-1] for sequence in sequences], pad_token_id)
    return reversed_ids.flip(1), reversed_mask.flip(1)


def plan_epoch(num_rows: int, *, rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of every optimizer step of an epoch, ordered by (seed, epoch). No remainder is dropped."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows).tolist()
    return [order[i : i + rows_per_step] for i in range(0, num_rows, rows_per_step)]


def share_step(
    step: Sequence[int],
    length: Callable[[int], int],
    *,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    pass_cost: int | None = None,
) -> list[list[int]]:
    """The micro-batches of one rank in one optimizer step.

    Rows are dealt out by length, so that rows of a micro-batch have similar lengths and ranks similar work. Every
    rank gets the same number of micro-batches; one without rows is empty, and the caller gives it no weight.

    Args:
        micro_batch_size: rows of a micro-batch at most.
        pass_cost: where padding costs as much as text, what one more pass costs, in positions: micro-batches then have
            the number of rows that takes the least. None makes as few of them as there can be.
    """
    dealt = sorted(step, key=lambda i: (-length(i), i))
    rounds = [dealt[at : at + world_size] for at in range(0, len(dealt), world_size)]  # a row for every rank
    if pass_cost is None:
        sizes = [micro_batch_size] * math.ceil(len(rounds) / micro_batch_size)
    else:
        sizes = cheapest_groups([length(one[0]) for one in rounds], micro_batch_size, pass_cost)
    ends = list(itertools.accumulate(sizes))
    groups = [rounds[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [[one[rank] for one in group if rank < len(one)] for group in groups]


def cheapest_groups(lengths: Sequence[int], most: int, pass_cost: int) -> list[int]:
    """Sizes of consecutive groups of rows, padded to the longest of each, that cost the least together.

    Args:
        lengths: of the rows, the longest first.
        most: rows of a group.
        pass_cost: of every group beside its positions.
    """
    costs, starts = [0.0], [0]  # of the first rows, in the best way; where its last group starts
    for end in range(1, len(lengths) + 1):
        last = range(end - 1, max(0, end - most) - 1, -1)
        best = min(last, key=lambda start: costs[start] + (end - start) * lengths[start])
        costs.append(costs[best] + (end - best) * lengths[best] + pass_cost)
        starts.append(best)
    sizes: list[int] = []
    end = len(lengths)
    while end:
        sizes.insert(0, end - starts[end])
        end = starts[end]
    return sizes
