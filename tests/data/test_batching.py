"""Batches: golden tensors, the loss of a plain forward, and every row once over ranks and micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from raft.data.batching import (
    IGNORED,
    cheapest_groups,
    collate,
    collate_pairs,
    pad_left,
    pad_right,
    paired_length,
    plan_epoch,
    share_step,
    shared_length,
)
from raft.data.encoding import PairRow, TokenRow, pack
from raft.models.forward import next_token_loss, target_logits

PAD = 0
X = IGNORED


def row(num_prompt: int, *response: int) -> TokenRow:
    """A prompt of the tokens 91, 92, ... and a response that is trained."""
    prompt = [91 + i for i in range(num_prompt)]
    return TokenRow(prompt + list(response), [False] * num_prompt + [True] * len(response))


# ---------------------------------------------------------------- golden


def test_rows_meet_at_their_first_target() -> None:
    """Prompts of 2 and 4 tokens, responses of 3 and 1: all responses begin in column 4."""
    batch = collate([row(2, 11, 12, 2), row(4, 2)], PAD)
    assert batch.input_ids.tolist() == [[PAD, PAD, 91, 92, 11, 12, 2], [91, 92, 93, 94, 2, PAD, PAD]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 0]]
    assert batch.labels.tolist() == [[X, X, X, X, 11, 12, 2], [X, X, X, X, 2, X, X]]
    assert batch.columns.tolist() == [3, 4, 5]  # three columns of logits for four targets, not seven
    assert batch.weight == 4


def test_pad_that_is_eos_is_still_trained_where_it_is_real() -> None:
    batch = collate([row(1, 11, 2), row(1, 2)], 2)
    assert batch.labels.tolist() == [[X, 11, 2], [X, 2, X]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.weight == 3


def test_several_responses_in_a_row() -> None:
    """Columns are those that some row needs, gaps left out."""
    two_turns = TokenRow([91, 92, 11, 93, 94, 12], [False, False, True, False, False, True])
    batch = collate([two_turns], PAD)
    assert batch.labels.tolist() == [[X, X, 11, X, X, 12]]
    assert batch.columns.tolist() == [1, 4]


def test_first_token_is_no_target() -> None:
    batch = collate([TokenRow([11, 12, 13], [True] * 3)], PAD)
    assert batch.labels.tolist() == [[X, 12, 13]]
    assert batch.columns.tolist() == [0, 1]
    assert batch.weight == 2


def test_row_without_targets_weighs_nothing() -> None:
    batch = collate([TokenRow([11, 12], [False, False])], PAD)
    assert batch.weight == 0
    assert batch.columns.tolist() == [0]  # a model can be run on it


def test_packed_rows() -> None:
    batch = collate(pack([[11, 12, 13], [21, 22], [31, 32, 33, 34]], 5), PAD)
    assert batch.input_ids.tolist() == [[31, 32, 33, 34, PAD], [11, 12, 13, 21, 22]]
    assert batch.labels.tolist() == [[X, 32, 33, 34, X], [X, 12, 13, X, 22]]  # 21 is not predicted from 13
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]  # the pad is a document of its own
    assert batch.columns.tolist() == [0, 1, 2, 3]
    assert batch.attention_mask is None
    assert batch.weight == 6


def test_pairs() -> None:
    pairs = [PairRow([1, 2, 3], [1, 4], 0.5), PairRow([5], [5, 6], 0.0)]
    batch = collate_pairs(pairs, PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3], [5, PAD, PAD], [1, 4, PAD], [5, 6, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.weight == 2


def test_pairs_in_one_row_each() -> None:
    pairs = [PairRow([1, 2, 3, 9], [1, 2, 4, 5, 9], 0.5), PairRow([7, 9], [8, 9])]
    batch = collate_pairs(pairs, PAD, sharing=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 9, 4, 5, 9], [7, 9, 8, 9, PAD, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2, 2, 2], [1, 1, 2, 2, 3, 3, 3]]
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.weight == 2
    assert [shared_length(pair) for pair in pairs] == [7, 4]
    assert [paired_length(pair) for pair in pairs] == [5, 2]


@pytest.mark.parametrize(
    ("chosen", "rejected", "num_shared"),
    [
        ([1, 2, 9], [1, 3, 9], 1),
        ([1, 9], [1, 2, 9], 1),
        ([9], [9], 0),  # the last token of each is scored
        ([1, 2, 9], [1, 2, 9], 2),
        ([9, 9], [9, 9, 9, 9], 1),
        ([4, 2], [1, 2], 0),
    ],
)
def test_tokens_in_common(chosen: list[int], rejected: list[int], num_shared: int) -> None:
    assert PairRow(chosen, rejected).num_shared == num_shared
    assert PairRow(rejected, chosen).num_shared == num_shared


def test_pairs_share_only_where_that_saves_positions() -> None:
    """Nothing in common: one row of 2 + 2 tokens is as much as two rows of 2. One more in common, and it is less."""
    assert collate_pairs([PairRow([1, 9], [2, 9])], PAD, sharing=True).segments is None
    assert collate_pairs([PairRow([1, 3, 9], [1, 4, 9])], PAD, sharing=True).segments is not None
    assert collate_pairs([PairRow([1, 3, 9], [1, 4, 9])], PAD).segments is None


def test_padding() -> None:
    ids, mask = pad_right([[1, 2, 3], [4]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]])
    ids, mask = pad_left([[1, 2, 3], [4]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]])


def test_moving_a_batch_keeps_what_is_no_tensor() -> None:
    batch = collate(pack([[11, 12]], 5), PAD).to(torch.device("meta"))
    assert batch.input_ids.device.type == batch.columns.device.type == "meta"
    assert (batch.attention_mask, batch.weight) == (None, 1)


# ---------------------------------------------------------------- the loss


@torch.no_grad()
def test_loss_is_that_of_a_plain_forward_of_each_row(tiny_model: str) -> None:
    """No padding, no positions, no chosen columns: one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    rows = [TokenRow(draw(p + r), [False] * p + [True] * r) for p, r in [(9, 3), (2, 12), (30, 1), (0, 5)]]
    rows.append(TokenRow(draw(12), [False] * 4 + [True] * 3 + [False] * 2 + [True] * 3))
    expected, targets = 0.0, []
    for one in rows:
        logprobs = model(input_ids=torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
        places = [t for t in range(1, len(one.tokens)) if one.trained[t]]
        expected -= sum(logprobs[t - 1, one.tokens[t]].item() for t in places)
        targets.append([one.tokens[t] for t in places])
    batch = collate(rows, PAD)
    loss, _ = next_token_loss(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    logits, labels = target_logits(model, batch)
    assert logits.shape[:2] == labels.shape == (5, len(batch.columns))
    assert [[label for label in line if label != X] for line in labels.tolist()] == targets
    assert batch.weight == sum(map(len, targets)) == sum(one.num_targets for one in rows)


# ---------------------------------------------------------------- who takes what


@given(
    num_rows=st.integers(1, 60),
    micro_batch_size=st.integers(1, 7),
    world_size=st.integers(1, 5),
    data=st.data(),
)
def test_every_row_once_over_ranks_and_as_many_micro_batches_on_each(
    num_rows: int, micro_batch_size: int, world_size: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=num_rows, max_size=num_rows))
    step = data.draw(st.permutations(range(num_rows)))
    shares = [
        share_step(step, lengths.__getitem__, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    taken = [i for share in shares for micro_batch in share for i in micro_batch]
    assert sorted(taken) == list(range(num_rows))
    assert {len(share) for share in shares} == {math.ceil(num_rows / world_size / micro_batch_size)}
    assert all(len(micro_batch) <= micro_batch_size for share in shares for micro_batch in share)
    rows_of_ranks = [sum(map(len, share)) for share in shares]
    assert max(rows_of_ranks) - min(rows_of_ranks) <= 1
    for share in shares:
        own = [lengths[i] for micro_batch in share for i in micro_batch]
        assert own == sorted(own, reverse=True)  # similar lengths together, the longest first


def test_share_by_hand() -> None:
    lengths = {3: 10, 5: 40, 7: 30, 8: 20, 9: 30}

    def share(rank: int) -> list[list[int]]:
        return share_step([3, 5, 7, 8, 9], lengths.__getitem__, micro_batch_size=2, rank=rank, world_size=2)

    assert share(0) == [[5, 9], [3]]  # by length: 5 7 9 8 3, dealt out in turn; 7 and 9 tie, the lower number first
    assert share(1) == [[7, 8], []]


def test_groups_by_hand() -> None:
    # 100 and 90 together are 200 positions, apart 190 and a pass; 10 beside them would be 90 more, 10 and a pass apart.
    assert cheapest_groups([100, 90, 10], most=8, pass_cost=20) == [2, 1]
    assert cheapest_groups([100, 90, 10], most=8, pass_cost=9) == [1, 1, 1]
    assert cheapest_groups([100, 90, 10], most=8, pass_cost=91) == [3]
    assert cheapest_groups([7, 7, 7, 7, 7], most=2, pass_cost=1) == [2, 2, 1]
    assert cheapest_groups([], most=2, pass_cost=1) == []


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9).map(lambda found: sorted(found, reverse=True)),
    most=st.integers(1, 5),
    pass_cost=st.integers(0, 40),
)
def test_no_other_groups_are_cheaper(lengths: list[int], most: int, pass_cost: int) -> None:
    def cost(sizes: Sequence[int]) -> int:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return sum(size * lengths[start] + pass_cost for start, size in zip(starts, sizes, strict=True))

    found = cheapest_groups(lengths, most, pass_cost)
    assert sum(found) == len(lengths)
    assert max(found) <= most
    cuts = itertools.product([False, True], repeat=len(lengths) - 1)
    ways = ([len(list(run)) for _, run in itertools.groupby(itertools.accumulate([0, *way]))] for way in cuts)
    assert cost(found) == min(cost(way) for way in ways if max(way) <= most)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    micro_batch_size=st.integers(1, 7),
    world_size=st.integers(1, 5),
    pass_cost=st.integers(0, 100),
)
def test_rows_of_different_lengths_part_on_all_ranks_alike(
    lengths: list[int], micro_batch_size: int, world_size: int, pass_cost: int
) -> None:
    def shares(cost: int | None) -> list[list[list[int]]]:
        return [
            share_step(
                range(len(lengths)), lengths.__getitem__, micro_batch_size=micro_batch_size, rank=rank,
                world_size=world_size, pass_cost=cost,
            )
            for rank in range(world_size)
        ]  # fmt: skip

    def of_ranks(found: list[list[list[int]]]) -> list[list[int]]:
        return [[i for micro_batch in share for i in micro_batch] for share in found]

    parted = shares(pass_cost)
    assert of_ranks(parted) == of_ranks(shares(None))  # who has which row does not depend on it
    assert len({len(share) for share in parted}) == 1
    assert all(len(micro_batch) <= micro_batch_size for share in parted for micro_batch in share)
    assert all(share[0] for share in parted[:1])


@given(num_rows=st.integers(1, 80), rows_per_step=st.integers(1, 20), seed=st.integers(0, 2**31 - 1))
def test_epoch_has_every_row_once(num_rows: int, rows_per_step: int, seed: int) -> None:
    steps = plan_epoch(num_rows, rows_per_step=rows_per_step, seed=seed, epoch=3)
    assert sorted(i for step in steps for i in step) == list(range(num_rows))
    assert [len(step) for step in steps[:-1]] == [rows_per_step] * (len(steps) - 1)
    assert 1 <= len(steps[-1]) <= rows_per_step
    assert steps == plan_epoch(num_rows, rows_per_step=rows_per_step, seed=seed, epoch=3)


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [plan_epoch(50, rows_per_step=50, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(steps[0]) for steps in orders}) == 4
