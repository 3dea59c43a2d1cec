"""What this machine has: memory of the device, memory of the host, room on the disk."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch


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
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(properties.name, True, properties.total_memory, 0, disk)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return Machine("CPU", False, host_memory() // max(1, here), resident(), disk)


def host_memory() -> int:
    """Bytes of memory, or what the container may use of it, if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


def resident() -> int:
    """Bytes that this process has in memory now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found.group(1)) * 1024 if found else 0
