"""Which texts are read together, and what several of them begin with, so that it is read once.

Sizes: R rows of token ids, P prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

WORTH = 0.9  # of the positions at most: less is not worth a second pass


@dataclass(frozen=True)
class Continued:
    """A batch whose rows are beginnings and continuations.

    Attributes:
        prefixes: P lists of token ids, none of them empty.
        owners: R numbers, for each row its prefix.
        tails: R lists of token ids, none of them empty: prefix and tail are the row.
    """

    prefixes: list[list[int]]
    owners: list[int]
    tails: list[list[int]]


@dataclass(frozen=True)
class Plan:
    """How rows are read.

    Attributes:
        batches: indices of the rows that are read together.
        shared: for every row, how many of its first tokens it has in common with its group; None where every row is
            read by itself.
    """

    batches: list[list[int]]
    shared: list[int] | None = None

    def continued(self, rows: Sequence[Sequence[int]], groups: Sequence[Hashable], batch: Sequence[int]) -> Continued:
        """Some rows of a batch as prefixes and tails."""
        assert self.shared is not None, "only where prefixes are shared"
        owners = {group: i for i, group in enumerate(dict.fromkeys(groups[row] for row in batch))}
        prefixes: list[list[int]] = [[]] * len(owners)
        for row in batch:
            prefixes[owners[groups[row]]] = list(rows[row][: self.shared[row]])
        tails = [list(rows[row][self.shared[row] :]) for row in batch]
        return Continued(prefixes, [owners[groups[row]] for row in batch], tails)


def plan_reading(
    rows: Sequence[Sequence[int]], groups: Sequence[Hashable], *, batch_size: int, sharing: bool = True
) -> Plan:
    """Divide rows into batches with little padding, what a group has in common read once a batch if that is less work.

    Args:
        rows: token ids.
        groups: R labels; rows of one group are expected to begin alike, as responses to one prompt do.
        batch_size: rows of a batch at most.
        sharing: whether prefixes may be shared at all.
    """
    plain = _by_length(rows, batch_size)
    if not sharing or len(set(groups)) == len(rows):
        return Plan(plain)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    shared = [0] * len(rows)
    for group_rows in members.values():
        length = common_length([rows[row] for row in group_rows])
        for row in group_rows:
            shared[row] = length
    if min(shared) == 0:
        return Plan(plain)
    tail = [len(row) - length for row, length in zip(rows, shared, strict=True)]
    order = sorted(members.values(), key=lambda group: (-shared[group[0]], group[0]))
    placed = [row for group in order for row in sorted(group, key=lambda row: (-tail[row], row))]
    together = [placed[at : at + batch_size] for at in range(0, len(placed), batch_size)]
    work = sum(
        len({groups[row] for row in batch}) * max(shared[row] for row in batch)
        + len(batch) * max(tail[row] for row in batch)
        for batch in together
    )
    worth = work <= WORTH * sum(len(batch) * max(len(rows[row]) for row in batch) for batch in plain)
    return Plan(together, shared) if worth else Plan(plain)


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, so many at most that each has one more."""
    longest = min(map(len, rows)) - 1
    columns = zip(*(row[:longest] for row in rows), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _by_length(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
