"""What this machine has: memory of the device, memory of the host, room on the disk."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from raft.memory import device_memory


@dataclass(frozen=True)
class Machine:
    """Bytes.

    Attributes:
        device: its name.
        on_gpu: whether that is a GPU; else the memory of device and host are one.
        memory: of the device, for one process.
        taken: of that, by the libraries of a process.
        disk: free where the run will write.
    """

    device: str
    on_gpu: bool
    memory: int
    taken: int
    disk: int


def this_machine(output_dir: Path, num_processes: int) -> Machine:
    """Look, and change nothing. Several processes share the host, and each has a GPU of its own."""
    place = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    disk = shutil.disk_usage(place).free
    on_gpu = torch.cuda.is_available()
    memory = device_memory(torch.device("cuda", 0) if on_gpu else torch.device("cpu"), num_processes)
    if on_gpu:
        return Machine(torch.cuda.get_device_name(0), True, memory, 0, disk)
    return Machine("CPU", False, memory, resident(), disk)


def resident() -> int:
    """Bytes that this process has in memory now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found.group(1)) * 1024 if found else 0
