from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raft.errors import UserError
from raft.rewards.function import FunctionSource, as_scores, load_function
from raft.rewards.source import Candidate, Excluded
from tests.rewards import sources

HERE = "tests.rewards.sources"
PROMPTS = [({"role": "user", "content": f"question {i}"},) for i in range(5)]
CANDIDATES = [
    Candidate(PROMPTS[i], "xyzuv"[:i], ("eos", "length")[i % 2], {"answer": "xy"}, "<a>", [7] * i) for i in range(5)
]


def source(name: str, batch_size: int = 3) -> FunctionSource:
    target = f"{HERE}:{name}"
    return FunctionSource(load_function(target, f"--reward {target}"), flag=f"--reward {target}", batch_size=batch_size)


def scores(name: str, texts: Sequence[str], batch_size: int = 8) -> list[float | Excluded]:
    found = source(name, batch_size).score([Candidate(PROMPTS[0], text) for text in texts], name="test", progress=None)
    return list(found)


def test_it_is_given_everything_in_batches_and_in_order() -> None:
    sources.CALLS.clear()
    found = source("length").score(CANDIDATES, name="test", progress=None)
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [len(call["responses"]) for call in sources.CALLS] == [3, 2]
    assert sources.CALLS[1] == {
        "prompts": [[{"role": "user", "content": "question 3"}], [{"role": "user", "content": "question 4"}]],
        "responses": ["xyz", "xyzu"],
        "completions": [[{"role": "assistant", "content": "xyz"}], [{"role": "assistant", "content": "xyzu"}]],
        "finish_reasons": ["length", "eos"],
        "prompt_tails": ["<a>", "<a>"],
        "response_tokens": [[7, 7, 7], [7, 7, 7, 7]],
        "completion_ids": [[7, 7, 7], [7, 7, 7, 7]],
        "answer": ["xy", "xy"],
    }


def test_functions_written_for_trl_and_those_without_columns() -> None:
    assert source("trl").score(CANDIDATES, name="test", progress=None) == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert source("two_arguments").score(CANDIDATES, name="test", progress=None) == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_a_column_that_some_rows_lack_is_none() -> None:
    sources.CALLS.clear()
    rows = [Candidate(PROMPTS[0], "a", extra={"level": 3}), Candidate(PROMPTS[0], "b", extra={"responses": "mine"})]
    source("length").score(rows, name="test", progress=None)
    assert sources.CALLS[0]["level"] == [3, None]
    assert sources.CALLS[0]["responses"] == ["a", "b"], "a column does not replace what ours is called"


def test_what_a_function_changes_is_its_own() -> None:
    asked = Candidate(({"role": "user", "content": "?"},), "a", extra={"tests": [1]}, response_tokens=[7])
    found = FunctionSource(sources.spoils, flag="--reward f", batch_size=2).score([asked], name="test", progress=None)
    assert found == [1.0]
    assert asked == Candidate(({"role": "user", "content": "?"},), "a", extra={"tests": [1]}, response_tokens=[7])


def test_a_task_that_was_cancelled_excludes_its_response_and_ends_nothing() -> None:
    assert scores("cancelled", ["a", "b"]) == [Excluded("raised CancelledError"), 1.0]


def test_a_builtin_that_does_not_say_what_it_takes() -> None:
    with pytest.raises(UserError, match="--reward f: what it takes is not known, as of many builtins"):
        FunctionSource(max, flag="--reward f", batch_size=2)


def test_async_functions() -> None:
    assert scores("asynchronous", ["", "ab", "abc"]) == [0.0, 2.0, 3.0]


def test_what_an_async_function_keeps_between_batches_goes_on_working() -> None:
    sources.CLIENT.clear()
    assert scores("with_client", ["", "ab", "abc", "a"], batch_size=1) == [0.0, 2.0, 3.0, 1.0]


def test_a_function_that_exits_excludes_its_response_and_ends_nothing() -> None:
    assert scores("leaves", ["x", "w", "y"]) == [1.0, Excluded("raised SystemExit", "3"), 1.0]
    with pytest.raises(UserError, match=r"raised SystemExit \(3\) for every response of a batch"):
        scores("leaves", ["w"] * 8)


def test_what_can_not_be_scored_is_excluded_alone() -> None:
    found = scores("choosy", ["xx", "bw", "v", "", "y"])
    assert found[0] == 2.0
    assert found[1] == Excluded("raised ValueError", "there is a w in it")
    assert found[2] == Excluded("returned None")
    assert found[3] == Excluded("returned nan")
    assert found[4] == 1.0


def test_few_responses_that_all_raise_are_excluded_rather_than_an_error() -> None:
    """A small batch may be unlucky; whether all of many batches were is for the caller to see."""
    assert scores("broken", ["x"] * 7) == [Excluded("raised KeyError", "'answer'")] * 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"raised KeyError \('answer'\) for every response of a batch"),
        ("one_too_many", "returned 9 scores for 8 responses"),
        ("words", "returned 'good' as a score, expected a number or None"),
        ("nothing", "returned NoneType, expected a list"),
        ("needs_solution", "takes an argument solution; what there is to give is prompts, responses"),
    ],
)
def test_one_that_does_not_work_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scores(name, ["x"] * 8)
    assert str(caught.value).startswith(f"--reward {HERE}:{name}: ")


def test_results_of_other_kinds() -> None:
    assert as_scores(np.array([1, 2], dtype=np.int64), 2, "") == [1.0, 2.0]
    assert as_scores(torch.tensor([0.5, math.inf]), 2, "") == [0.5, Excluded("returned inf")]
    assert as_scores((True, np.float32(0.25)), 2, "") == [1.0, 0.25]
    assert as_scores([torch.tensor(2.0)], 1, "") == [2.0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:f", "could not import no_such_module: ModuleNotFoundError"),
        (f"{HERE}:lenght", 'lenght does not exist in tests.rewards.sources. Did you mean "length"'),
        (f"{HERE}:NUMBER", "NUMBER is no function in"),
        ("nowhere/rewards.py:f", "could not import nowhere/rewards.py: FileNotFoundError"),
    ],
)
def test_functions_that_are_not_there(target: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_function(target, "--reward x")
    assert message in str(caught.value)
    assert str(caught.value).startswith("--reward x: ")


def test_modules_of_the_current_directory_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    x: int\n"
    (tmp_path / "rewards_here.py").write_text(text + "def f(responses):\n    return [C(1).x for _ in responses]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "rewards_here", raising=False)
    for target in ("rewards_here:f", f"{tmp_path}/rewards_here.py:f"):
        found: Any = FunctionSource(load_function(target, ""), flag="", batch_size=2)
        assert found.score([Candidate((), "x")], name="test", progress=None) == [1.0]
