"""Commands and scripts in processes of their own, forked from one that has imported what they need.

Starting Python with torch, transformers, peft and DeepSpeed takes ten seconds of a core, most tests a fraction of one.
Ranks find each other by the environment variables that torchrun sets; torchrun itself is used where it is the matter.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRELOADED = [
    "datasets", "deepspeed", "matplotlib.pyplot", "peft", "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama", "raft.stages.align", "raft.stages.sft", "raft.stages.reward_modeling",
]  # fmt: skip
GRACE = 15.0  # seconds that ranks get to end by themselves after one of them has failed

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(PRELOADED)


def run_forked(
    program: Sequence[str], *arguments: object, num_processes: int = 1, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program as ``python`` would, once or as several ranks.

    Args:
        program: ``("-m", module)`` or ``("-c", text)``.

    Returns:
        Rank 0's standard output, everybody's standard error, and the exit code of the rank that failed first.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
        world["MASTER_PORT"] = str(free.getsockname()[1])
        free.close()
        outputs = [(Path(folder, f"out{rank}"), Path(folder, f"err{rank}")) for rank in range(num_processes)]
        ranks = []
        for rank, (out, err) in enumerate(outputs):
            ranked = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
            environment = {**os.environ, **ranked}
            given = (tuple(program), [str(a) for a in arguments], environment, str(out), str(err))
            ranks.append(_forkserver.Process(target=_become, args=given))
            ranks[-1].start()
        code = _wait(ranks, timeout)
        output, errors = outputs[0][0].read_text(), "".join(err.read_text() for _, err in outputs)
    command = [*program, *map(str, arguments)]
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, output, errors)
    return subprocess.CompletedProcess(command, code, output, errors)


def run_torchrun(*arguments: object, num_processes: int, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``raft`` under torchrun, as ``--nproc`` of the scripts does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [*launcher, "-m", "raft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False)


def _wait(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float) -> int | None:
    """The first exit code that is not 0, or 0; None if it took too long. Nothing is left running."""
    deadline, code = time.monotonic() + timeout, 0
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
        multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=0.5)
        failed = [rank.exitcode for rank in ranks if rank.exitcode]
        if failed and not code:
            code, deadline = failed[0], min(deadline, time.monotonic() + GRACE)
    hung = not code and any(rank.is_alive() for rank in ranks)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
        rank.join()
    if hung:
        return None
    return code or next((rank.exitcode for rank in ranks if rank.exitcode), 0)


def spare_time() -> None:
    """Leave out what costs much in many small runs and shows nothing: flushing to a disk that does not fail, and
    looking through all that was imported for garbage (half a second each time, and ZeRO-3 asks for it often)."""
    os.fsync = os.fstat  # type: ignore[assignment]  # which refuses what is no open file as well
    gc.freeze()


def _become(program: tuple[str, str], arguments: list[str], environment: dict[str, str], out: str, err: str) -> None:
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    spare_time()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is shared with the parent: whoever dies holding it blocks all
    kind, text = program
    sys.argv = [text, *arguments]
    if kind == "-m":
        runpy.run_module(text, run_name="__main__", alter_sys=True)
    else:
        exec(compile(text, "<test>", "exec"), {"__name__": "__main__"})
