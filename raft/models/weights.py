"""Files of weights, looked at before a library loads them: whole, and nothing but numbers.

Weights are safetensors: a header of JSON and plain numbers behind it, in which no code can hide. A copy that was cut
short is told by the header, which says how long the file has to be.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from raft import json_file
from raft.errors import UserError

INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000
"""Bytes; what safetensors itself allows."""


def refuse_damaged(directory: Path, *, flag: str) -> None:
    """Refuse a model directory whose weights are not all there.

    Raises:
        UserError: naming the file that is missing, cut short, or no safetensors file.
    """
    index = directory / INDEX
    names: set[str] = set()
    if index.is_file():
        listed = json_file.read_object(index, f"{flag}:").get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError(f"{flag}: {index}: found no weight_map from tensors to files.")
        names = set(listed.values())
    for name in sorted(names):
        if Path(name).name != name:
            raise UserError(f"{flag}: {index}: {name!r} is no name of a file beside it.")
        if not (directory / name).is_file():
            raise UserError(f"{flag}: {directory} lacks {name}, which {INDEX} lists; was it copied as a whole?")
    files = sorted(directory.glob("*.safetensors"))
    pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(kind))
    if not files and pickled:
        raise UserError(
            f"{flag}: {directory} has its weights as {pickled[0]} alone, a format that can run code when it is opened; "
            "expected safetensors (convert it where you trust it: from_pretrained, then save_pretrained)."
        )
    for file in files:
        shapes(file, flag=flag)


def shapes(file: Path, *, flag: str = "") -> dict[str, list[int]]:
    """Shape of every tensor in a safetensors file, by its name, from the header alone.

    Raises:
        UserError: naming the file, if it is cut short or its header is not sound.
    """
    where = f"{flag}: {file}".removeprefix(": ")
    try:
        header, room = _header(file, where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}).") from None
    found, ends = {}, [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not _is_sound(entry):
            raise UserError(f"{where}: no sound safetensors file: its header is not one for the tensor {name[:80]!r}.")
        found[name] = entry["shape"]
        ends.append(entry["data_offsets"][1])
    if max(ends) != room:
        what = "was it copied as a whole?" if max(ends) > room else "there is more behind its last tensor."
        raise UserError(f"{where}: has {room} bytes of tensors, its header speaks of {max(ends)}; {what}")
    return found


def _header(file: Path, where: str) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of tensors come after it."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER
        if length > min(size - 8, LARGEST_HEADER):
            raise UserError(f"{where}: no sound safetensors file, or cut short ({size} bytes).")
        header = json_file.parse_object(stream.read(length), f"{where}: no sound safetensors file: its header")
    return header, size - 8 - length


def _is_sound(entry: Any) -> bool:
    """Whether an entry of the header has a shape and a place."""
    if not isinstance(entry, dict):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(type(one) is int and 0 <= one < 1 << 63 for one in (*shape, *offsets)) and offsets[0] <= offsets[1]
