"""Where the phases of a run begin, told from outside: functions are wrapped, the toolkit knows nothing of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Where a phase begins: (module, class or "", function) -> its name.
PHASES = {
    ("raft.stages.align", "Alignment", "sample"): "sampling",
    ("raft.stages.align", "Alignment", "score"): "scoring",
    ("raft.stages.align", "Alignment", "rank"): "selecting",
    ("raft.stages.align", "Alignment", "fine_tune"): "training",
    ("raft.stages.align", "Alignment", "record"): "reporting",
    ("raft.stages.align", "Alignment", "evaluate"): "evaluating",
    ("raft.stages.align", "Alignment", "finish"): "finishing",
    ("raft.engine.engine", "Engine", "train_step"): "training",
    ("raft.engine.engine", "Engine", "evaluate"): "evaluating",
    ("raft.engine.engine", "Engine", "save_state"): "saving",
    ("raft.manifest", "", "write_manifest"): "saving",
    ("raft.engine.export", "", "save_pretrained"): "exporting",
    ("raft.stages.common", "", "finish"): "finishing",
}


def announce_phases(announce: Callable[[str], object]) -> None:
    """Have the beginning of every phase told, in this process."""
    for (module_name, owner_name, name), phase in PHASES.items():
        module = importlib.import_module(module_name)
        owner = getattr(module, owner_name) if owner_name else module
        original = getattr(owner, name)

        def wrapped(*args: Any, _original: Any = original, _phase: str = phase, **options: Any) -> Any:
            announce(_phase)
            return _original(*args, **options)

        for place in holders(owner, name, original):
            setattr(place, name, wrapped)


def holders(owner: Any, name: str, original: Any) -> Iterator[Any]:
    """The owner, and the modules that have imported a function from it."""
    yield owner
    for module in list(sys.modules.values()):
        if module is not owner and getattr(module, "__dict__", {}).get(name) is original:
            yield module
