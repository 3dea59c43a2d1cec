"""Two responses in one row: who sees whom, at which positions, and where each ends. Numbers by hand."""

from __future__ import annotations

import torch

from raft.functional.branches import CHOSEN, PADDING, REJECTED, SHARED, branch_attention, branch_ends, branch_positions

# Rows: two shared tokens, then one and two of their own; nothing shared, two and one, then padding.
SEGMENTS = torch.tensor(
    [[SHARED, SHARED, CHOSEN, REJECTED, REJECTED], [CHOSEN, CHOSEN, REJECTED, PADDING, PADDING]],
)


def test_a_response_sees_the_shared_part_and_what_came_before_in_itself() -> None:
    assert branch_attention(SEGMENTS).int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 0, 1, 0],  # rejected: not the chosen token between
                [1, 1, 0, 1, 1],
            ]
        ],
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [0, 0, 1, 0, 0],
                [0, 0, 0, 1, 0],  # padding: itself, so that its softmax is not over nothing
                [0, 0, 0, 1, 1],
            ]
        ],
    ]


def test_the_rejected_rest_starts_where_the_chosen_rest_does() -> None:
    assert branch_positions(SEGMENTS)[0].tolist() == [0, 1, 2, 2, 3]
    assert branch_positions(SEGMENTS)[1, :3].tolist() == [0, 1, 0]


def test_ends() -> None:
    assert branch_ends(SEGMENTS).tolist() == [[2, 1], [4, 2]]  # chosen of both rows, then rejected of both
