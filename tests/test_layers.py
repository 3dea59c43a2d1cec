"""Imports point down: the picture in docs/architecture.md is true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from raft.cli import COMMANDS

ROOT = Path(__file__).parent.parent / "raft"
MODULES = sorted(ROOT.rglob("*.py"))
# Room -> layer. A module may import from its own room, from lower layers, and on layer 2 from rooms beside it.
LAYERS = {"functional": 0, "data": 2, "engine": 2, "rollout": 2, "rewards": 2, "models": 2, "reports": 2, "planning": 2}
LAYERS |= {"stages": 3, "tools": 3, "cli": 4, "__main__": 5}
FOUNDATION = 1  # single modules: config, arguments, run_directory, distributed, errors, ...


def room_of(name: str) -> str:
    """``raft.data.loading`` -> ``data``; ``raft`` -> ``__init__``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer_of(room: str) -> int:
    return LAYERS.get(room, 0 if room in {"__init__", "errors"} else FOUNDATION)


def imports_of(path: Path) -> list[str]:
    """Every raft module a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module != "raft" else [f"raft.{alias.name}" for alias in node.names]
    return [name for name in found if name == "raft" or name.startswith("raft.")]


def module_name(path: Path) -> str:
    return ".".join(["raft", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = module_name(path)
    for name in imports_of(path):
        room, own_room = room_of(name), room_of(own)
        assert layer_of(room) <= layer_of(own_room), f"{own} imports {name}, which is above it"


def test_pure_functions_import_nothing_but_each_other() -> None:
    for path in (ROOT / "functional").glob("*.py"):
        assert {room_of(name) for name in imports_of(path)} <= {"functional"}, path.name


def test_stages_and_tools_never_import_each_other() -> None:
    commands = {command.module for command in COMMANDS.values()}
    for path in [*(ROOT / "stages").glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        assert not commands & set(imports_of(path)), path.name


def test_machinery_names_no_algorithm() -> None:
    for room in ("engine", "models", "functional/logprobs.py", "data/batching.py"):
        paths = [ROOT / room] if room.endswith(".py") else (ROOT / room).glob("*.py")
        for path in paths:
            names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            assert not {"raft_batch_size", "num_raft_iteration", "collection_strategy"} & names, path.name
