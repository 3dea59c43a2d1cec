"""Which held-out pairs are stored with a reward model, for the self-test of whoever loads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft.data.encoding import PairRow
from raft.rewards.contract import ScoredPair

NUM_CONSIDERED = 24
BATCH = 8


def choose_examples(
    pairs: Sequence[PairRow],
    score_rows: Callable[[Sequence[Sequence[int]]], list[float]],
    *,
    count: int,
    max_length: int,
    spread: float,
) -> tuple[ScoredPair, ...]:
    """The shortest held-out pairs that a model ranks rightly and clearly: short ones are cheap to store and to score.

    Args:
        pairs: held-out pairs with the rows they come from. Those that fill ``max_length`` tokens may have been cut and
            are not considered.
        score_rows: scores of rows of token ids.
        spread: standard deviation of scores; half of it is a clear difference, which rounding does not turn round.

    Returns:
        At most ``count``; none where the model ranks none of the 24 shortest clearly.
    """
    whole = [pair for pair in pairs if pair.row is not None and _length(pair) < max_length]
    considered = sorted(whole, key=_length)[: NUM_CONSIDERED if count else 0]
    found: list[ScoredPair] = []
    for at in range(0, len(considered), BATCH // 2):
        few = considered[at : at + BATCH // 2]
        scores = score_rows([side for pair in few for side in (pair.chosen, pair.rejected)])
        for pair, chosen, rejected in zip(few, scores[::2], scores[1::2], strict=True):
            if chosen - rejected >= spread / 2 and len(found) < count:
                row = pair.row
                assert row is not None, "only pairs with rows are considered"
                found.append(ScoredPair(row.messages, row.chosen or "", row.rejected or "", chosen, rejected))
        if len(found) == count:
            break
    return tuple(found)


def _length(pair: PairRow) -> int:
    return max(len(pair.chosen), len(pair.rejected))
