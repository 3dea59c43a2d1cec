"""Ranks: who am I, talk to the others, share work. One process is the ordinary case, not a special one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def initialize(timeout_minutes: int = 60) -> None:
    """Join the process group: gloo on CPUs, nccl on GPUs. Without a launcher this is a group of one."""
    if dist.is_initialized():
        return
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if int(os.environ["WORLD_SIZE"]) == 1 and "MASTER_PORT" not in os.environ:
        # A group of one needs no port, so two runs on one machine can not collide on it.
        dist.init_process_group(_backend(), store=dist.HashStore(), rank=0, world_size=1)
    else:
        os.environ.setdefault("MASTER_PORT", "29500")
        dist.init_process_group(_backend(), timeout=timedelta(minutes=timeout_minutes))


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        # Gloo's thread may want Python's lock to forget the last collective, while the group that is being destroyed
        # holds it and waits for the thread: torch 2.7 hung there. Asleep, this thread has let go of it.
        time.sleep(0.1 if dist.get_world_size() > 1 else 0)
        dist.destroy_process_group()


def rank() -> int:
    """Global rank of this process."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Rank of this process on its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """The device this process computes on."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def broadcast(value: T) -> T:
    """Rank 0's picklable value, on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(value: T) -> list[T]:
    """Every rank's picklable value, in the order of ranks."""
    if world_size() == 1:
        return [value]
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def all_reduce_sum(values: list[float]) -> list[float]:
    """Element-wise sum over ranks, in double precision."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device="cpu")
    dist.all_reduce(tensor)
    return tensor.tolist()


def all_reduce_max(value: int) -> int:
    """The largest value of all ranks, on each of them."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def take_chunks(name: str, num_chunks: int) -> Iterator[int]:
    """Yield the chunks that this rank should work on; together the ranks get each of ``range(num_chunks)`` once.

    A rank takes the next chunk from a counter in the process group's store when it is ready for one, so a slow
    rank (or one with long responses) holds nobody up.

    Args:
        name: unique in the run, for example ``"3/sampling"``; a counter counts only once.
        num_chunks: how many there are.
    """
    if world_size() == 1:
        yield from range(num_chunks)
        return
    store = dist.distributed_c10d._get_default_store()
    while (chunk := store.add(f"raft/chunks/{name}", 1) - 1) < num_chunks:
        yield chunk


def end_chunks(name: str) -> None:
    """Leave no chunk of this name to take: each rank ends with the one it is at."""
    if world_size() > 1:
        dist.distributed_c10d._get_default_store().add(f"raft/chunks/{name}", 2**40)
