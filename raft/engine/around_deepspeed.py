"""Around DeepSpeed: importing it without its chatter, and what is set right in its optimizers."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from raft import distributed
from raft.functional.engine_memory import UNSHARDED_AT_ONCE


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter and without compiling anything."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with quiet():
        import deepspeed
    # On CPUs DeepSpeed compiles a shared-memory all-reduce at start-up (a minute, and a compiler must be there).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    distributed.initialize()
    deepspeed.init_distributed(dist_backend=distributed._backend(), verbose=False)
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import an optimizer that nothing here uses, but that the first step under ZeRO would import.

    DeepSpeed decorates it with torch.compile, which imports the whole compiler: 3 s of a core, 40 s from a cold disk.
    """
    from deepspeed.runtime import compiler

    original, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        with suppress(ImportError):
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = original


def avoid_cudnn_attention() -> None:
    """Let attention on GPUs run by any kernel of torch's but cuDNN's.

    On H100 and H200, torch from 2.11 on takes cuDNN's by default, whose backward gives NaN for a query in a row of
    64 modulo 128 tokens with a mask if all that it sees is masked, as padding on the left is (pytorch issue 196678):
    about one step in 128, whose loss is fine and whose gradient is lost.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def undo_allocation_step(optimizer: Any) -> None:
    """Forget the step without gradients that DeepSpeed takes to allocate Adam's moments under bf16 and ZeRO-0.

    It counts in Adam's bias correction, which makes the first real steps a quarter too small, and decays the masters.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.optimizer.state.clear()
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.data.copy_(weight.data)


def reduce_in_small_buckets(engine: Any, num_elements: int = UNSHARDED_AT_ONCE) -> None:
    """Without ZeRO, average gradients over the ranks in buckets of so many elements, or a larger one for one gradient.

    DeepSpeed copies half a billion of them into one tensor, on a single process too: for a small model that is all
    gradients a second time.
    """
    engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=num_elements)


@contextmanager
def dropping_gradient(optimizer: Any) -> Iterator[None]:
    """Within this, DeepSpeed's optimizer finds an overflow whatever its gradient is: its step only drops that.

    Each ZeRO stage has buffers of its own to empty; this is the way they are emptied where a gradient is not finite.
    There is no loss scale in fp32 and bf16 that an overflow would change.
    """
    overflowing: dict[str, Any] = {"has_overflow": lambda *args, **options: True}  # ZeRO 1 and 2
    if hasattr(optimizer, "overflow_checker"):  # bf16 without ZeRO
        optimizer, overflowing = optimizer.overflow_checker, {"check": lambda *args, **options: True}
    elif hasattr(optimizer, "_get_norm_groups"):  # ZeRO-3 goes by the norm
        overflowing = {"_get_norm_groups": lambda: [math.inf]}
    vars(optimizer).update(overflowing)
    try:
        yield
    finally:
        for name in overflowing:
            del vars(optimizer)[name]
