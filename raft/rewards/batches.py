"""Batches of candidates, shared among ranks, for the sources that are asked rather than computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from raft import distributed
from raft.bars import tqdm
from raft.journal import share
from raft.rewards.source import Candidate, Excluded

Scores = Sequence[float | Excluded]


def score_in_batches(
    candidates: Sequence[Candidate],
    score_batch: Callable[[Sequence[Candidate]], Scores],
    *,
    name: str,
    batch_size: int,
    num_threads: int = 1,
    progress: str | None = None,
) -> list[float | Excluded]:
    """Score batches of neighbours on all ranks together.

    Args:
        score_batch: the scores of up to ``batch_size`` candidates.
        name: unique in the run; names the counter that ranks take batches from.
        num_threads: batches that a rank has under way at once; 1 stays in this thread.
        progress: label of the progress bar, None for none.

    Raises:
        UserError: on every rank, what ``score_batch`` raised on any; no further batch is begun on that rank.
    """
    batches = [candidates[at : at + batch_size] for at in range(0, len(candidates), batch_size)]
    hidden = progress is None or not distributed.is_main()
    with tqdm(total=len(candidates), desc=progress, unit="text", leave=False, disable=hidden) as bar:
        answers = share(
            name,
            len(batches),
            lambda number: [_to_json(score) for score in score_batch(batches[number])],
            key=lambda number: [asdict(candidate) for candidate in batches[number]],
            on_done=lambda number: bar.update(len(batches[number])),
            num_threads=num_threads,
        )
    return [_from_json(answer) for batch in answers for answer in batch]


def _to_json(score: float | Excluded) -> float | list[str]:
    return [score.reason, score.detail] if isinstance(score, Excluded) else score


def _from_json(answer: float | list[str]) -> float | Excluded:
    return Excluded(*answer) if isinstance(answer, list) else answer
