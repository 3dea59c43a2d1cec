"""A few hundred wrong inputs of every kind; `python benchmarks/fuzz.py` tries ten thousand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz import Target, run_target
from benchmarks.fuzz_data import naming
from benchmarks.fuzz_targets import all_targets
from raft.errors import UserError

SLOW = {"raft plot": 3, "model": 3, "before training": 6, "parquet": 6, "config files": 25}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return all_targets(tmp_path_factory.mktemp("material"))


def test_whatever_comes_is_taken_or_refused_with_its_place(targets: list[Target]) -> None:
    outcomes = [run_target(target, SLOW.get(target.name, 20)) for target in targets]
    assert {one.name: one.violations for one in outcomes if one.violations} == {}
    assert sum(one.cases for one in outcomes) >= 300
    assert sum(one.accepted for one in outcomes) > 50
    assert sum(one.refused for one in outcomes) > 100


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (lambda plan, directory: {}["x"], "KeyError in test_fuzz.py:<lambda>"),
        (lambda plan, directory: time.sleep(5), "took more than 0.05 s"),
        (lambda plan, directory: _refuse("a\nb: c"), "message with several lines or none"),
        (lambda plan, directory: _refuse("something is wrong"), "message that names no place"),
        (lambda plan, directory: (directory / "x.part").write_text(""), "left x.part"),
    ],
    ids=["traceback", "hang", "lines", "place", "part"],
)
def test_what_is_a_violation(attempt: fuzz.Callable, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    found = run_target(Target("x", st.just(0), attempt, naming("--flag")), 1)
    assert list(found.violations) == [kind]


def test_a_good_refusal_is_none(tmp_path: Path) -> None:
    found = run_target(Target("x", st.integers(), lambda plan, directory: _refuse("--flag: x"), naming("--flag")), 5)
    assert (found.cases, found.refused, found.violations) == (5, 5, {})


def _refuse(message: str) -> None:
    raise UserError(message)
