"""Data files -> raw values, each with its place. What cannot be read is told by file, line and column."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from raft.data.dialogues import quote
from raft.errors import UserError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")

MOST_EXPANDED = 200  # times its own size that a gzip file may unpack to; text takes 3 to 20
SMALL = 64 << 20  # bytes that it may unpack to in any case

_BOM = b"\xef\xbb\xbf"


class _BadValue(Exception):
    """Valid for Python's JSON reader and yet no sound row."""


def iter_values(path: str) -> Iterator[tuple[str, object]]:
    """(source, raw value) of every row in a file; ``path`` ends with one of ``SUFFIXES``.

    Lines are streamed. A ``.json`` file may hold an array, one object, or objects one after the other (JSON
    lines); what it holds is told by its first character.
    """
    try:
        if path.lower().endswith(".parquet"):
            yield from _parquet_rows(path)
        elif ".jsonl" in os.path.basename(path).lower():
            yield from _json_lines(path)
        else:
            yield from _json_document(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: found a damaged gzip file ({error}), expected a whole one") from error
    except OSError as error:
        said = error.strerror or " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({said})") from error


def _open(path: str) -> BinaryIO:
    if path.lower().endswith(".gz"):
        return io.BufferedReader(_Unpacked(path))
    return open(path, "rb")


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, up to a size that no data has: one of a megabyte can unpack to a gigabyte of zeros."""

    def __init__(self, path: str) -> None:
        self._path, self._size = path, 0
        self._file = gzip.open(path, "rb")  # noqa: SIM115  # closed with this
        self._largest = max(SMALL, MOST_EXPANDED * os.path.getsize(path))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)
        self._size += size
        if self._size > self._largest:
            raise UserError(f"{self._path}: found a gzip file that unpacks to more than {MOST_EXPANDED} times its size")
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _json_lines(path: str) -> Iterator[tuple[str, object]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(_BOM)
                if line.lstrip().startswith(b"[") or line.strip() == b"{":
                    break  # a JSON document under the name of JSON lines
            text = _decode(line.rstrip(b"\r\n"), path, number)  # or a line cut short would be blamed on the next
            start = _skip_space(text, 0)
            if start < len(text):
                value, end = _parse(text, start, path, number)
                _expect_end(text, end, path, number)
                yield f"{path}:{number}", value
        else:
            return
    yield from _json_document(path)


def _json_document(path: str) -> Iterator[tuple[str, object]]:
    with _open(path) as stream:
        text = _decode(stream.read().removeprefix(_BOM), path, 1)
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        yield from _array_items(text, start, path)
    elif start < len(text):
        yield from _following_objects(text, start, path)


def _array_items(text: str, start: int, path: str) -> Iterator[tuple[str, object]]:
    """The items of the array that opens at ``start``, parsed one at a time: each error has its place."""
    at, index = _skip_space(text, start + 1), 0
    is_open = text[at : at + 1] != "]"
    while is_open:
        value, end = _parse(text, at, path)
        yield f"{path}[{index}]", value
        index += 1
        at = _skip_space(text, end)
        is_open = text[at : at + 1] == ","
        at = _skip_space(text, at + 1) if is_open else at
    if text[at : at + 1] != "]":
        _fail_json(json.JSONDecodeError("Expecting ',' or ']'", text, at), path)
    _expect_end(text, at + 1, path)


def _following_objects(text: str, start: int, path: str) -> Iterator[tuple[str, object]]:
    """One object, or several one after the other, each named by the line it begins on."""
    at, line, counted = start, 1, 0
    while at < len(text):
        value, end = _parse(text, at, path)
        line, counted = line + text.count("\n", counted, at), at
        following = _skip_space(text, end)
        is_only_one = at == start and following == len(text)
        yield path if is_only_one else f"{path}:{line}", value
        at = following


def _parse(text: str, start: int, path: str, first_line: int = 1) -> tuple[object, int]:
    """The JSON value at ``start`` and the index behind it; ``first_line`` numbers the text's first line."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        _fail_json(error, path, first_line)
    except _BadValue as error:
        problem = str(error)
    except RecursionError:
        problem = "found JSON nested too deeply, expected a plain row"
    raise UserError(f"{path}:{first_line + text.count(chr(10), 0, start)}: {problem}")


def _expect_end(text: str, end: int, path: str, first_line: int = 1) -> None:
    end = _skip_space(text, end)
    if end != len(text):
        _fail_json(json.JSONDecodeError("Extra data", text, end), path, first_line)


def _fail_json(error: json.JSONDecodeError, path: str, first_line: int = 1) -> NoReturn:
    line = first_line + error.lineno - 1
    raise UserError(f"{path}:{line}: column {error.colno}: found invalid JSON ({error.msg})") from error


def _decode(data: bytes, path: str, first_line: int) -> str:
    nul = data.find(b"\0")
    if nul >= 0:
        line = first_line + data.count(b"\n", 0, nul)
        raise UserError(f"{path}:{line}: found a NUL byte, expected text in UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        byte = f"0x{data[error.start]:02x}"
        raise UserError(f"{path}:{line}: found the byte {byte}, expected text in UTF-8") from error


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadValue(f"found the key {quote(twice)} twice in one object, expected each key once")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise _BadValue(f"found {name}, expected a JSON number or null")


def _integer(digits: str) -> int:
    if len(digits) > 4000:  # Python refuses these itself, with an error that names no place
        raise _BadValue(f"found an integer of {len(digits)} digits, expected a plain row")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_int=_integer)


def _parquet_rows(path: str) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}[{index}]", row
                    index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: found no sound parquet file ({str(error).splitlines()[0]})") from error
