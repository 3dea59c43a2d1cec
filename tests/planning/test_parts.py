"""The largest micro-batch that a plan takes, against the batches of a run."""

from __future__ import annotations

import pytest

from raft.config import ModelConfig
from raft.data.batching import collate, collate_joined
from raft.data.encoding import TokenRow
from raft.planning.parts import Ground, joins, largest_text_batch


def row(context: int, response: int) -> TokenRow:
    return TokenRow([7] * (context + response), [False] * context + [True] * response)


ROWS = [row(1, 3), row(7, 3), row(2, 1), row(4, 2)]


def test_padded_by_hand() -> None:
    # The two longest: 7 + 3 and 4 + 2. Columns begin at the later start, 7, and have room for the longer response.
    rows, length, columns = largest_text_batch(ROWS, 2, joined=False)
    assert (rows, length, columns) == (2, 10, 3)
    batch = collate([ROWS[1], ROWS[3]], 0)
    assert batch.input_ids.shape == (rows, length)


def test_joined_by_hand() -> None:
    rows, length, columns = largest_text_batch(ROWS, 2, joined=True)
    assert (rows, length, columns) == (2, 8, 3)  # (10 + 6) / 2, and (3 + 2) / 2 rounded up
    assert collate_joined([ROWS[1], ROWS[3]]).input_ids.shape == (1, rows * length)


@pytest.mark.parametrize(
    ("on_gpu", "options", "expected"),
    [
        (False, {}, True),
        (True, {}, False),
        (False, {"gradient_checkpointing": True}, False),
        (False, {"attn_implementation": "eager"}, False),
    ],
)
def test_where_rows_are_joined(on_gpu: bool, options: dict[str, object], expected: bool) -> None:
    assert joins(ModelConfig("a-model", **options), Ground(on_gpu=on_gpu)) is expected  # type: ignore[arg-type]
