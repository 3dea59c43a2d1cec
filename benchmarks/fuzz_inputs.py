"""What ``fuzz.py`` does to sound files: changes to their values, to their text and to their bytes.

A change is a name and two numbers that say where and how, so that Hypothesis can draw, repeat and shorten it. Nothing
here knows what a file means.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Change = tuple[str, int, int]

MEGABYTES_10 = 10 << 20
# Put in as plain strings and written out at last: JSON's writer has no way to say these.
RAW = {
    "@deep@": "[" * 5000 + "]" * 5000,
    "@deep objects@": '{"a":' * 400 + "1" + "}" * 400,
    "@digits@": "9" * 5000,
    "@overflow@": "1e999",
    "@twice@": '{"a": 1, "a": 2}',
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 1.5, -0.0, 10**25, 10**400, float("nan"), float("inf"), "", " ", "x", "5", "1e3",
    "nan", "true", "\0", "\ud800", "\ufeffx", "\x1b[31mred", "line\nbreak", "../../etc/passwd", "{{ 7 * 7 }}", [], {},
    [[]], [None], [1, 2], ["a", "b"], {"role": "user"}, {"role": "user", "content": "x"}, {"a": {"b": [{}]}},
    [{"role": "tool", "content": ""}], [{"from": "gpt", "value": 5}], "x" * 5000, *RAW,
)  # fmt: skip
KEYS = ("prompt", "response", "text", "messages", "conversations", "chosen", "rejected", "instances", "type", "margin",
        "reward", "step", "iteration", "input", "output", "instruction", "system", "", "a/b", "\ud800")  # fmt: skip


# ---------------------------------------------------------------- values


def _places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        found.append((value, key))
        _places(item, found)
    return found


def _replace(rows: list[Any], where: int, how: int) -> None:
    if places := _places(rows):
        container, key = places[where % len(places)]
        container[key] = copy.deepcopy(ODD[how % len(ODD)])


def _delete(rows: list[Any], where: int, how: int) -> None:
    if places := _places(rows):
        container, key = places[where % len(places)]
        del container[key]


def _rename(rows: list[Any], where: int, how: int) -> None:
    if places := [place for place in _places(rows) if isinstance(place[0], dict)]:
        container, key = places[where % len(places)]
        container[KEYS[how % len(KEYS)]] = container.pop(key)


def _swap(rows: list[Any], where: int, how: int) -> None:
    if places := _places(rows):
        (one, i), (other, j) = places[where % len(places)], places[how % len(places)]
        one[i], other[j] = copy.deepcopy(other[j]), copy.deepcopy(one[i])


def _wrap(rows: list[Any], where: int, how: int) -> None:
    if places := _places(rows):
        container, key = places[where % len(places)]
        container[key] = [container[key]] if how % 2 else {"x": container[key]}


def _retype(rows: list[Any], where: int, how: int) -> None:
    """Numbers as strings, strings as numbers, the rest as text."""
    if places := [place for place in _places(rows) if not isinstance(place[0][place[1]], dict | list)]:
        container, key = places[where % len(places)]
        value = container[key]
        container[key] = len(value) if isinstance(value, str) else str(value)


def _repeat(rows: list[Any], where: int, how: int) -> None:
    if rows:
        rows.extend(copy.deepcopy(rows[where % len(rows)]) for _ in range(how % 5))


def _insert(rows: list[Any], where: int, how: int) -> None:
    rows.insert(where % (len(rows) + 1), copy.deepcopy(ODD[how % len(ODD)]))


def _empty(rows: list[Any], where: int, how: int) -> None:
    del rows[where % 2 :]


VALUES: dict[str, Callable[[list[Any], int, int], None]] = {
    "replace": _replace, "delete": _delete, "rename": _rename, "swap": _swap, "wrap": _wrap, "retype": _retype,
    "repeat": _repeat, "insert": _insert, "empty": _empty,
}  # fmt: skip


def changed(value: Any, changes: Sequence[Change]) -> Any:
    """A copy of a JSON value with changes made to it."""
    held = [copy.deepcopy(value)]
    for name, where, how in changes:
        if name in VALUES and held:
            rows = held[0] if isinstance(held[0], list) else held
            VALUES[name](rows, where, how)
    return held[0] if held else {}


def as_json(value: Any) -> str:
    """JSON as Python writes it (NaN, halves of surrogate pairs), with what it can not write."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


# ---------------------------------------------------------------- bytes


def _spliced(data: bytes, where: int, how: int) -> bytes:
    at, piece = where % (len(data) + 1), PIECES[how % len(PIECES)]
    return data[:at] + piece + data[at:]


def _huge(data: bytes, where: int, how: int) -> bytes:
    """Ten megabytes within one field, or as one line; rare, because it takes time."""
    if how % 200:
        return data
    marks = [i for i in range(len(data)) if data[i : i + 1] == b'"'][1::2] or [0]
    at = marks[where % len(marks)]
    return data[:at] + b"x" * MEGABYTES_10 + data[at:]


def _shuffled(data: bytes, where: int, how: int) -> bytes:
    changed, chance = bytearray(data), random.Random(how)
    for _ in range(1 + where % 8 if data else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


PIECES = (b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\r\n", b"\n", b"\r", b",", b"{", b"}", b"[",
b"]",
          b'"', b"\\", b":", b"NaN", b"-", b"1e9", b"null", b"\x1b[2J", b"\x85", b"\xe2\x80\xa8", b" " * 5000,
          b"[" * 3000, b"{" * 3000, b"\n" * 3000, b"# x\n", b"!!python/object/apply:os.system [id]", b"&a *a",
          b"---\n", b"\t", b"'", b"<<: ", b"? ", b"| ")  # fmt: skip
BYTES: dict[str, Callable[[bytes, int, int], bytes]] = {
    "splice": _spliced,
    "cut": lambda data, where, how: data[: where % (len(data) + 1)],
    "cut start": lambda data, where, how: data[where % (len(data) + 1) :],
    "shuffle": _shuffled,
    "crlf": lambda data, where, how: data.replace(b"\n", b"\r\n"),
    "cr": lambda data, where, how: data.replace(b"\n", b"\r"),
    "bom": lambda data, where, how: b"\xef\xbb\xbf" + data,
    "encoding": lambda data, where, how: data.decode("utf-8", "replace").encode(
        ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")[how % 6], "replace"
    ),
    "gzip": lambda data, where, how: gzip.compress(data, 1)[: None if how % 2 else where],
    "nothing": lambda data, where, how: b"",
    "spaces": lambda data, where, how: (b" ", b"\n\n", b"\xef\xbb\xbf", b"[]", b"{}", b"null", b"[[]]")[how % 7],
    "twice": lambda data, where, how: data + data,
    "huge": _huge,
}


def damaged(data: bytes, changes: Sequence[Change]) -> bytes:
    """Bytes with changes made to them."""
    for name, where, how in changes:
        if name in BYTES:
            data = BYTES[name](data, where, how)
    return data


# ---------------------------------------------------------------- what Hypothesis draws

NUMBERS = st.integers(0, 1 << 20)


def changes() -> st.SearchStrategy[list[Change]]:
    """None to a few changes, to values alone or to anything."""
    values = st.tuples(st.sampled_from(tuple(VALUES)), NUMBERS, NUMBERS)
    other = st.tuples(st.sampled_from(tuple(BYTES)), NUMBERS, NUMBERS)
    return st.one_of(st.lists(values, max_size=3), st.lists(other, max_size=1), st.lists(values | other, max_size=3))
