"""Digests of what a run was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raft.errors import UserError
from raft.inputs import digest, digest_of_code, recorded, refuse_others


def test_digests_tell_order_borders_and_kinds_apart() -> None:
    values = [
        [], [[]], [[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[3], [1, 2]], ["12"], ["1", "2"], [None], [0.5],
        [[1, "2", 3]], [{"a": 1}], [{"a": 2}], [[1 << 40]],
    ]  # fmt: skip
    found = [digest(value) for value in values]
    assert len(set(found)) == len(values)
    assert found == [digest(value) for value in values]  # and nothing of this process is in them
    assert digest([{"a": 1, "b": 2}]) == digest([{"b": 2, "a": 1}])
    assert all(len(text) == 16 for text in found)


def test_code_is_its_text_without_comments(tmp_path: Path) -> None:
    def of(text: str | bytes) -> str | None:
        (tmp_path / "rule.py").write_bytes(text.encode() if isinstance(text, str) else text)
        return digest_of_code(str(tmp_path / "rule.py"))

    first = of("def f(x):\n    return x + 1\n")
    assert first
    assert first == of("# as agreed\ndef f(x):  # of x\n    # on Monday\n    return x + 1\n")
    assert first == of("def f(x):\r\n    return x + 1\r\n")
    assert first != of("def f(x):\n    return x + 2\n")
    asked = 'ASKED = """\n# Rate it.\n\n# From {} to 10.\n"""  # {}\n'
    assert of(asked.format(0, 0)) == of(asked.format(0, 1)) != of(asked.format(1, 0))  # part of a text is no comment
    assert of("# -*- coding: latin-1 -*-\nx = '\xe9' # a\n".encode("latin-1")) is not None
    assert of('"""never closed') is None
    assert of(b"\x7fELF\x00\xff") is None
    assert digest_of_code(None) is None
    assert digest_of_code(str(tmp_path / "gone.py")) is None


def test_an_input_that_is_another_one_is_named() -> None:
    before = {"--dataset_path": "a", "--reward one": "b", "--reward gone": "c"}
    refuse_others({"--dataset_path": "a", "--reward one": "b", "--reward new": "d"}, before)
    with pytest.raises(UserError, match=r"^--reward one: .* \(environment.json has b, now it is x\)"):
        refuse_others({"--dataset_path": "a", "--reward one": "x"}, before)


def test_records_of_runs(tmp_path: Path) -> None:
    assert recorded(tmp_path) == {}
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({"raft": "0.1"}))  # of before it was kept
    assert recorded(tmp_path) == {}
    file.write_text(json.dumps({"inputs": {"--dataset_path": "a"}}))
    assert recorded(tmp_path) == {"--dataset_path": "a"}
    file.write_text(json.dumps({"inputs": ["a"]}))
    with pytest.raises(UserError, match=r"environment.json: inputs is not as it was written"):
        recorded(tmp_path)
