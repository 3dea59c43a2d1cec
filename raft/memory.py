"""How much memory there is, and what to do when a batch does not fit: the same in two halves, and say so."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def in_halves(work: Callable[[range], list[T]], num_rows: int, *, what: str) -> list[T]:
    """Work on rows 0 to ``num_rows - 1`` at once, or where memory runs out on either half of them, and so on.

    Args:
        work: gives one result a row; called again for fewer rows after it ran out of memory, so it must not have
            changed anything by then.
        what: the rows are, for the message.

    Raises:
        MemoryError, torch.OutOfMemoryError: if even a single row does not fit.
    """
    return _work(work, range(num_rows), what)


def _work(work: Callable[[range], list[T]], rows: range, what: str) -> list[T]:
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    # Outside of the except clause: the traceback holds the tensors that did not fit.
    gc.collect()
    _empty_cache()
    middle = rows.start + (len(rows) + 1) // 2
    print(
        f"out of memory with {len(rows)} {what} at once; going on with {middle - rows.start}. A smaller batch size "
        "would have saved the attempt.",
        file=sys.stderr,
    )
    return _work(work, range(rows.start, middle), what) + _work(work, range(middle, rows.stop), what)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU (where torch has no type for it)."""
    import torch

    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_memory(device: torch.device, num_processes: int) -> int:
    """Bytes that one of so many processes has: all of its GPU, or its share of the host.

    Args:
        num_processes: on this host, unless the launcher says how many of them are (``LOCAL_WORLD_SIZE``).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    here = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return host_memory() // max(1, here)


def host_memory() -> int:
    """Bytes of memory, or what the container may use of it, if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total
