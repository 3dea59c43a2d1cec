"""What a run was made from, in digests: a resumed run notices what has changed behind flags that stayed the same."""

from __future__ import annotations

import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from raft import json_file
from raft.errors import UserError
from raft.run_directory import ENVIRONMENT


def digest(values: Iterable[Any]) -> str:
    """16 hex digits of JSON values in their order."""
    found = xxhash.xxh3_64()
    for value in values:
        found.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def digest_of_code(path: str | None) -> str | None:
    """Of the text of a Python file, but for its comments; None where there is none to be read.

    Of the text and not of what Python makes of it, which differs between versions of Python.
    """
    try:
        source = Path(path or "").read_bytes()
        encoding, *tokens = tokenize.tokenize(io.BytesIO(source).readline)
        lines = source.decode(encoding.string).split("\n")
    except (OSError, SyntaxError, ValueError, tokenize.TokenError):  # compiled, say
        return None
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() or "#"
    return digest(line.rstrip("\r") for line in lines if line != "#")


def digest_of_file(path: Path) -> str:
    """Of a file that fits into memory, such as an adapter."""
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def recorded(run: Path) -> dict[str, str]:
    """What the run in a directory was made from; {} for runs of before this was kept.

    Raises:
        UserError: if it is not as it was written.
    """
    path = run / ENVIRONMENT
    found = json_file.read_object(path, "--resume").get("inputs", {}) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"--resume: {path}: inputs is not as it was written, a digest for each input.")
    return found


def refuse_others(found: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Raise UserError if an input is not what it was, naming its flag; what either side does not know passes."""
    for flag, value in found.items():
        if before.get(flag, value) != value:
            raise UserError(
                f"{flag}: this is not what the run to be resumed was made from: what was read differs, though the flag "
                f"is the same ({ENVIRONMENT} has {before[flag]}, now it is {value}). Put it back as it was, or "
                "begin another run."
            )
