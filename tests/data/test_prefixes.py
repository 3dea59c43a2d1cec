"""Texts that begin alike are read together, each prompt once, where that is less work."""

from __future__ import annotations

import pytest

from raft.data.prefixes import Continued, common_length, plan_reading

# Two prompts (7, 7, 7, 7 and 8, 8) with two responses each, by hand.
ROWS = [[7, 7, 7, 7, 1], [8, 8, 3, 2], [7, 7, 7, 7, 2, 3], [8, 8, 1]]
GROUPS = ["seven", "eight", "seven", "eight"]


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # each keeps a token of its own, equal or not
        ([[1, 2, 3], [1, 2]], 1),
        ([[1, 2], [2, 2]], 0),
        ([[5]], 0),
        ([[5, 6, 7]], 2),
    ],
)
def test_common_length(rows: list[list[int]], length: int) -> None:
    assert common_length(rows) == length


def test_groups_stay_together_and_begin_with_the_longest_prompt() -> None:
    """Plain: two batches of 2 x 6 and 2 x 4 positions, 20 in all. Shared: 4 + 2 x 2 and 2 + 2 x 2, 14."""
    plan = plan_reading(ROWS, GROUPS, batch_size=2)
    assert plan.batches == [[2, 0], [1, 3]]
    assert plan.shared == [4, 2, 4, 2]
    assert plan.continued(ROWS, GROUPS, [2, 0]) == Continued([[7, 7, 7, 7]], [0, 0], [[2, 3], [1]])
    assert plan.continued(ROWS, GROUPS, [0, 1, 2]) == Continued(
        [[7, 7, 7, 7], [8, 8]], [0, 1, 0], [[1], [3, 2], [2, 3]]
    )


def test_a_group_may_be_spread_over_batches() -> None:
    rows = [[1, 1, 1, 1, 1, n] for n in range(5)]
    plan = plan_reading(rows, ["one"] * 5, batch_size=2)
    assert plan.batches == [[0, 1], [2, 3], [4]]
    assert plan.continued(rows, ["one"] * 5, [4]) == Continued([[1, 1, 1, 1, 1]], [0], [[4]])


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        (ROWS, ["a", "b", "c", "d"]),  # nothing in common
        ([[7, 1, 2, 3, 4, 5], [7, 3, 2, 1, 4, 5]], ["one", "one"]),  # 1 + 2 x 5 positions, not much below 2 x 6
        ([[7, 7, 7, 1], [7, 7, 7, 2], [9], [9]], ["a", "a", "b", "b"]),  # a row of one token has nothing to share
        ([[1, 2, 3, 4], [9, 2, 3, 4]], ["cut", "cut"]),  # cut on the left, at different places
    ],
)
def test_otherwise_rows_are_sorted_by_length(rows: list[list[int]], groups: list[str]) -> None:
    plan = plan_reading(rows, groups, batch_size=2)
    assert plan.shared is None
    lengths = [[len(rows[row]) for row in batch] for batch in plan.batches]
    assert [length for batch in lengths for length in batch] == sorted(map(len, rows), reverse=True)


def test_sharing_can_be_ruled_out() -> None:
    assert plan_reading(ROWS, GROUPS, batch_size=2, sharing=False).batches == [[2, 0], [1, 3]]
    assert plan_reading(ROWS, GROUPS, batch_size=2, sharing=False).shared is None
