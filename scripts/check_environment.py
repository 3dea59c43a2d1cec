"""Print what this interpreter lacks of the toolkit's requirements, one per line; exit code 1 if it lacks any.

    python scripts/check_environment.py [extra ...]

It reads the requirements from setup.py and looks at installed versions only: nothing heavy is imported.
"""

from __future__ import annotations

import ast
import sys
from importlib import metadata
from pathlib import Path

MINIMUM_PYTHON = (3, 10)
SETUP = Path(__file__).resolve().parent.parent / "setup.py"


def requirements(extras: list[str]) -> list[str]:
    """The requirements of setup.py, with those of ``extras``, as they stand there."""
    values = {}
    for node in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
    found = list(ast.literal_eval(values["REQUIREMENTS"]))
    for extra in extras:
        found += ast.literal_eval(values["EXTRAS"])[extra]
    return found


def missing(extras: list[str]) -> list[str]:
    """What is absent or outside the range that setup.py allows, with the version found."""
    if sys.version_info < MINIMUM_PYTHON:
        return ["python>=3.10 (found " + ".".join(map(str, sys.version_info[:3])) + ")"]
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    lacking = []
    for text in requirements(extras):
        requirement = Requirement(text)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            lacking.append(text)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{text} (found {version})")
    return lacking


if __name__ == "__main__":
    lacking = missing(sys.argv[1:])
    print("\n".join(lacking))
    sys.exit(1 if lacking else 0)
