"""Ranks share work and values: what one process does alone, two do together."""

from __future__ import annotations

import json

import pytest

from raft import distributed
from tests.conftest import run_ranks

SCRIPT = """
import json, time
from raft import distributed

distributed.initialize()
rank = distributed.rank()
mine = []
for chunk in distributed.take_chunks("a", 9):
    mine.append(chunk)
    time.sleep(0.2 if rank == 0 else 0.02)  # rank 0 is slow: it should get fewer
taken = distributed.all_gather(mine)
again = distributed.all_gather(list(distributed.take_chunks("b", 3)))
used = distributed.all_gather(list(distributed.take_chunks("a", 9)))
found = {
    "taken": taken,
    "again": again,
    "used": used,
    "broadcast": distributed.all_gather(distributed.broadcast(f"from {rank}")),
    "sum": distributed.all_gather(distributed.all_reduce_sum([1.0 + rank, 2.0**60 * rank, 1e-9])),
    "main": distributed.all_gather(distributed.is_main()),
    "world": distributed.world_size(),
}
distributed.barrier()
if distributed.is_main():
    print(json.dumps(found))
distributed.shutdown()
"""


def test_two_ranks() -> None:
    found = json.loads(run_ranks(SCRIPT, 2).splitlines()[-1])
    slow, quick = found["taken"]
    assert sorted(slow + quick) == list(range(9))  # each chunk once
    assert slow == sorted(slow)
    assert 1 <= len(slow) < len(quick)  # whoever is ready takes the next one
    assert sorted(found["again"][0] + found["again"][1]) == [0, 1, 2]  # another name is another counter
    assert found["used"] == [[], []]  # a counter counts once
    assert found["broadcast"] == ["from 0", "from 0"]
    assert found["sum"] == [[3.0, 2.0**60, 2e-9]] * 2
    assert found["main"] == [True, False]
    assert found["world"] == 2


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    if distributed.world_size() != 1:
        pytest.skip("another test left a larger group behind")
    assert distributed.rank() == 0
    assert distributed.is_main()
    assert list(distributed.take_chunks("a", 4)) == [0, 1, 2, 3]
    assert list(distributed.take_chunks("a", 0)) == []
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    assert distributed.all_gather("x") == ["x"]
    assert distributed.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
    distributed.barrier()


def test_rank_is_known_before_the_group_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reports a mistake once, from rank 0, before any process group is there."""
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (3, 1, 4)
    assert not distributed.is_main()
