"""JSON that is not what it should be is told by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.errors import UserError
from raft.json_file import MOST_NESTED, parse, read_lines, read_object


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON (Expecting value, column 1)."),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, column 8)."),
        (b'{"a":\n 1,}', ", line 2: not JSON (Illegal trailing comma before end of object, column 3)."),
        (b"[1]", ": found list, expected a JSON object."),
        (b"null", ": found null, expected a JSON object."),
        (b'{"a": "\xff"}', ": not UTF-8 text (byte 7)."),
        (b"[" * 100_000, ": not JSON of ours (nested too deeply)."),
        (b'{"a": ' + b"9" * 5000 + b"}", ": not JSON of ours (a number with thousands of digits)."),
        (b'{"a": ' + b"[" * MOST_NESTED + b"]" * MOST_NESTED + b"}", ": not JSON of ours (nested too deeply)."),
    ],
    ids=["empty", "cut", "trailing comma", "list", "null", "not UTF-8", "open lists", "digits", "nested"],
)
def test_what_is_no_object(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_object(file, "--flag")
    said = str(caught.value)
    assert said.startswith(f"--flag {file}")
    # Python before 3.13 has another name for a trailing comma.
    assert said.endswith(message) or (b",}" in data and ", line 2: not JSON (" in said)


def test_what_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [NaN, 1e999, "\\ud800"]}\r\n')  # a byte order mark, and what Python reads
    assert list(read_object(file)) == ["a"]
    just = "[" * (MOST_NESTED - 1) + "]" * (MOST_NESTED - 1)
    assert parse(f'{{"a": {just}, "b": {[[]] * 300}}}', "x")["b"] == [[]] * 300


def test_lines_are_counted_with_blank_ones_and_a_missing_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n \r\n{"a": 2}\nx\n')
    found = []
    with pytest.raises(UserError, match=r"a\.jsonl, line 5: not JSON"):
        found.extend(read_lines(file))
    assert [next(iter(read_lines(file)))] == [(f"{file}, line 1", {"a": 1})]
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file"):
        list(read_lines(tmp_path / "none.jsonl"))
