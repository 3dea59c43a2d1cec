"""JSON that was cut short, edited by hand or written by a stranger: whatever it is, the error names its place.

For files of the toolkit's own (records of runs, contracts, adapters, settings) and what comes over HTTP. Data sets have
a stricter reader, ``raft.data.files``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft.errors import UserError

MOST_NESTED = 100
"""Lists and objects within each other. Nothing here has more than ten; some hundred overflow the stack later on."""


def parse(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
        UserError: beginning with ``where``, if it is no JSON, or nested too deeply to be a record.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in error.doc.rstrip() else ""
        raise UserError(f"{where}{line}: not JSON ({error.msg}, column {error.colno}).") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON of ours (nested too deeply).") from None
    except ValueError:  # an integer of more than 4,300 digits
        raise UserError(f"{where}: not JSON of ours (a number with thousands of digits).") from None
    if text.count("[") + text.count("{") > MOST_NESTED and _is_deep(value):
        raise UserError(f"{where}: not JSON of ours (nested too deeply).")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_NESTED):
        containers = [one for one in level if isinstance(one, list | dict)]
        if not containers:
            return False
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, list | dict) for one in level)


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object of a text. Raises UserError as :func:`parse`, and for any other value."""
    value = parse(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {_type_name(value)}, expected a JSON object.")
    return value


def read_object(path: Path, flag: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        flag: that named the file, for the message.

    Raises:
        UserError: naming the file, if it can not be read or holds something else.
    """
    where = f"{flag} {path}".strip()
    return parse_object(_bytes(path, where), where)


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (``file, line 3``) and object of every line of a JSON-lines file; blank lines are passed over.

    Raises:
        UserError: naming file and line, if one is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, parse_object(line, where)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _bytes(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error}).") from None


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
