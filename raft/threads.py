"""Several threads that take work from one iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


class Shared:
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
        """Give nothing more."""
        self.closed = True


def in_threads(work: Callable[[int], None], numbers: Shared, num_threads: int) -> None:
    """Work on every number; after an exception no further one is begun.

    Args:
        num_threads: 1 works in this thread: a function may need the main one (timeouts by signal work nowhere else).
    """

    def run() -> None:
        for number in numbers:
            try:
                work(number)
            except BaseException:
                numbers.close()
                raise

    if num_threads == 1:
        run()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(run) for _ in range(num_threads)]:
            future.result()
