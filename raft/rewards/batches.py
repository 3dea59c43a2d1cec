"""Batches of candidates, shared among ranks, for the sources that are asked rather than computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from raft import distributed
from raft.errors import UserError
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
    found: dict[int, Scores] = {}
    error: UserError | None = None
    hidden = progress is None or not distributed.is_main()
    with tqdm(total=len(candidates), desc=progress, unit="text", leave=False, disable=hidden) as bar:
        chunks = _Shared(distributed.take_chunks(name, -(-len(candidates) // batch_size)))

        def work() -> None:
            for number in chunks:
                batch = candidates[number * batch_size :][:batch_size]
                try:
                    found[number] = score_batch(batch)
                except BaseException:
                    chunks.close()
                    raise
                bar.update(len(batch))

        try:
            _run(work, num_threads)
        except UserError as raised:
            error = raised
    parts = distributed.all_gather((found, error))
    for _, failure in parts:
        if failure is not None:
            raise failure
    gathered = {number: scores for part, _ in parts for number, scores in part.items()}
    return [score for number in sorted(gathered) for score in gathered[number]]


def _run(work: Callable[[], None], num_threads: int) -> None:
    if num_threads == 1:  # a function may need the main thread: timeouts by signal work nowhere else
        work()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(work) for _ in range(num_threads)]:
            future.result()


class _Shared:
    """An iterator that several threads may draw from, and that one may close for all."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.numbers, self.lock, self.closed = numbers, threading.Lock(), False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self.lock:
            if self.closed:
                raise StopIteration
            return next(self.numbers)

    def close(self) -> None:
        self.closed = True
