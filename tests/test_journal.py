"""A finished unit of work is found again after a restart, and nothing else is: bit for bit what was done."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raft import signals
from raft.errors import UserError
from raft.journal import Journal, in_order, keeping, once, share
from tests.conftest import run_ranks


class Worker:
    """Squares numbers, and remembers which."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def __call__(self, number: int) -> dict[str, Any]:
        self.done.append(number)
        return {"square": number**2, "third": number / 3, "nan": float("nan") if number == 2 else 0.0}


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture(autouse=True)
def _deaf() -> Iterator[None]:
    yield
    signals.forget()


def run(directory: Path, work: Callable[[int], Any], num_units: int = 5, salt: str = "", name: str = "a/1") -> Any:
    """Share some units, keeping a journal."""
    with keeping(Journal(directory)):
        return share(name, num_units, work, key=lambda number: [salt, number])


def test_finished_units_are_read_and_not_done_again(tmp_path: Path, worker: Worker) -> None:
    first = run(tmp_path, worker)
    assert worker.done == [0, 1, 2, 3, 4]
    again = run(tmp_path, worker)
    assert worker.done == [0, 1, 2, 3, 4]
    assert repr(again) == repr(first)  # to the last digit, and NaN is NaN
    assert first[1] == {"square": 1, "third": 1 / 3, "nan": 0.0}


def test_without_a_journal_nothing_is_kept(worker: Worker) -> None:
    for _ in range(2):
        assert share("a", 2, worker, key=lambda number: number)[1]["square"] == 1
    assert worker.done == [0, 1, 0, 1]


def test_units_of_another_key_or_name_are_not_found(tmp_path: Path, worker: Worker) -> None:
    run(tmp_path, worker)
    run(tmp_path, worker, salt="another prompt")
    run(tmp_path, worker, name="a/2")
    assert worker.done == [0, 1, 2, 3, 4] * 3


def test_names_that_differ_by_a_sign_are_kept_apart(tmp_path: Path, worker: Worker) -> None:
    """Two reward models, rm-1.5 and rm-1_5, score the same candidates in one run."""
    for name in ("scoring/1/rm-1.5", "scoring/1/rm-1_5", "scoring/1/rm-1é5"):
        run(tmp_path, worker, name=name)
    assert worker.done == [0, 1, 2, 3, 4] * 3
    assert len(list(tmp_path.iterdir())) == 3


def test_work_that_changes_what_it_is_given_is_found_by_what_it_was_given(tmp_path: Path, worker: Worker) -> None:
    for _ in range(2):
        given = [{"text": "a"} for _ in range(5)]

        def work(number: int) -> Any:
            given[number]["text"] += "!"  # noqa: B023
            return worker(number)

        with keeping(Journal(tmp_path)):
            share("a/1", 5, work, key=lambda number: given[number])
    assert worker.done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_off_is_no_line(tmp_path: Path, worker: Worker, cut: int) -> None:
    whole = run(tmp_path, worker)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert repr(run(tmp_path, worker)) == repr(whole)
    # Without its line break alone, the last unit is still whole.
    assert worker.done == [0, 1, 2, 3, 4] + [4] * (cut > 1)
    assert repr(run(tmp_path, worker)) == repr(whole)  # what was added after the cut starts a line of its own
    assert worker.done == [0, 1, 2, 3, 4] + [4] * (cut > 1)


def test_a_changed_byte_is_noticed(tmp_path: Path, worker: Worker) -> None:
    run(tmp_path, worker)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"square": 9', b'"square": 8'))
    assert run(tmp_path, worker)[3]["square"] == 9
    assert worker.done == [0, 1, 2, 3, 4, 3]


def test_an_exception_loses_the_unit_at_hand_alone(tmp_path: Path, worker: Worker) -> None:
    def failing(number: int) -> Any:
        if number == 3:
            raise RuntimeError("out of memory")
        return worker(number)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, failing)
    run(tmp_path, worker)
    assert worker.done == [0, 1, 2, 3, 4]


def test_a_signal_ends_the_work_after_the_unit_at_hand(tmp_path: Path, worker: Worker) -> None:
    def interrupted(number: int) -> Any:
        if number == 1:
            signal.raise_signal(signal.SIGTERM)
        return worker(number)

    signals.listen()
    with pytest.raises(signals.Stopped) as stop:
        run(tmp_path, interrupted)
    assert stop.value.code == 143
    assert worker.done == [0, 1]
    signals.forget()
    assert [one["square"] for one in run(tmp_path, worker)] == [0, 1, 4, 9, 16]
    assert worker.done == [0, 1, 2, 3, 4]


def test_what_was_trained_on_has_to_be_there(tmp_path: Path, worker: Worker) -> None:
    with keeping(Journal(tmp_path)) as journal:
        share("a", 2, worker, key=lambda number: number)
        assert once("b", lambda: [1.5]) == [1.5]
        journal.complete = True
        share("a", 2, worker, key=lambda number: number)
        assert once("b", lambda: [2.5]) == [1.5]
        with pytest.raises(UserError, match=r"--resume: .* lacks a part of a that the last checkpoint was trained on"):
            share("a", 3, worker, key=lambda number: number)
        with pytest.raises(UserError, match="lacks a part of c"):
            once("c", lambda: 1)
        assert worker.done == [0, 1]
        journal.clear()
    assert not tmp_path.exists()


def test_progress_counts_what_was_found(tmp_path: Path, worker: Worker) -> None:
    run(tmp_path, worker, num_units=2)
    told: list[int] = []
    with keeping(Journal(tmp_path)):
        share("a/1", 4, worker, key=lambda number: ["", number], on_done=told.append)
    assert told == [0, 1, 2, 3]


def test_results_by_unit_become_results_by_item() -> None:
    assert in_order([[2, 0], [1]], [["c", "a"], ["b"]]) == ["a", "b", "c"]


TWO = """
import json, signal, sys, time
from pathlib import Path
from raft import distributed, signals
from raft.journal import Journal, keeping, share

distributed.initialize()
rank, done = distributed.rank(), []

def work(number):
    done.append(number)
    if number == 3 and sys.argv[2] == "stop":
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.3 if rank == 0 else 0.1)
    return number ** 2

signals.listen()
code, found = 0, None
with keeping(Journal(Path(sys.argv[1]))):
    try:
        found = share("a", 12, work, key=lambda number: number)
    except signals.Stopped as stop:
        code = stop.code
everything = distributed.all_gather([code, done, found])
if distributed.is_main():
    print(json.dumps(everything))
signals.forget()
distributed.shutdown()
"""


def test_two_ranks_stop_together_and_lose_nothing(tmp_path: Path) -> None:
    """One of them gets the signal; both end after their unit, and the next run does what is left."""
    stopped = json.loads(run_ranks(TWO, 2, tmp_path, "stop").splitlines()[-1])
    assert [code for code, _, _ in stopped] == [130, 130]
    first = sorted(stopped[0][1] + stopped[1][1])
    assert first == list(range(len(first)))
    assert 4 <= len(first) <= 5  # 0 to 3, and what the other rank was at
    resumed = json.loads(run_ranks(TWO, 2, tmp_path, "go").splitlines()[-1])
    assert sorted(resumed[0][1] + resumed[1][1]) == list(range(len(first), 12))
    assert [found for _, _, found in resumed] == [[number**2 for number in range(12)]] * 2
