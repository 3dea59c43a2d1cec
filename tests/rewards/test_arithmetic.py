from __future__ import annotations

import json
import operator
from decimal import Decimal

import pytest

from raft.rewards.arithmetic import correct, last_number
from tests.conftest import ROOT

FILES = {name: ROOT / "data" / "arithmetic" / f"{name}.jsonl" for name in ("train", "held_out")}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 12.", "12"),
        ("15 - 43 = -28", "-28"),
        ("15-43", "43"),  # a minus between two numbers
        ("It is \u221228!", "-28"),
        ("1,024 or 3,5", "5"),
        ("first 7, then 1,024", "1024"),
        ("0.50", "0.5"),
        ("It is .5, or -.5", "-0.5"),
        ("step 1: 2 + 2. Answer: **4**", "4"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_right_wrong_none_and_not_to_be_judged() -> None:
    responses = ["It is -4.", "It is 4.", "I do not know.", "It is 4.0", "4"]
    assert correct(responses, ["-4", "-4", "-4", 4, "four"], prompts=[]) == [1.0, 0.0, 0.0, 1.0, None]
    assert correct(["It is 1,024."] * 4, ["1,024", "$1,024", "1e3", None], prompts=[]) == [1.0, 1.0, 0.0, None]


def test_the_committed_prompts_are_right_and_disjoint() -> None:
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in FILES.items()}
    assert {name: len(found) for name, found in rows.items()} == {"train": 384, "held_out": 128}
    every = [row for found in rows.values() for row in found]
    assert len({row["prompt"] for row in every}) == len({row["prompt_id"] for row in every}) == 512
    for row in every:
        first, sign, second, equals = row["prompt"].rsplit(": ", 1)[1].split()
        assert equals == "="
        assert int(row["answer"]) == {"+": operator.add, "-": operator.sub}[sign](int(first), int(second))


def test_the_prompts_are_what_reasoning_gym_makes(tmp_path: object) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the package reasoning-gym, which makes the prompts")
    import runpy

    before = {name: path.read_bytes() for name, path in FILES.items()}
    runpy.run_path(str(ROOT / "scripts/make_arithmetic_prompts.py"), run_name="__main__")
    assert {name: path.read_bytes() for name, path in FILES.items()} == before
