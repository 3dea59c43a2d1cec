"""From rows to micro-batches, where rows differ in length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raft import distributed
from raft.data.batching import Batching, collate
from raft.data.encoding import TokenRow
from raft.engine.loop import micro_batches


@pytest.mark.parametrize(("device", "shapes"), [("cpu", [(1, 300), (2, 20)]), ("cuda", [(3, 300)])])
def test_a_cpu_does_not_pad_short_rows_to_a_long_one(
    device: str, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "device", lambda: torch.device(device))
    rows = [TokenRow([5] * length, [False] + [True] * (length - 1)) for length in (20, 300, 18)]
    batching = Batching(lambda row: len(row.tokens), lambda some: collate(some, 0))
    batches: list[Any] = micro_batches(rows, [0, 1, 2], batching, micro_batch_size=8)
    assert [tuple(batch.input_ids.shape) for batch in batches] == shapes
    assert sum(batch.weight for batch in batches) == 19 + 299 + 17
