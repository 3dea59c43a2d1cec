"""Wrong input in great numbers: whatever a file, a flag or a request says, the toolkit takes it or says what is wrong.

    python benchmarks/fuzz.py                   # 10,000 cases, about as many minutes as it prints
    python benchmarks/fuzz.py --cases 500 --only data config

Hypothesis draws the cases: sound files with changes to their values, text and bytes, and texts for flags. A case is
accepted or refused with the toolkit's UserError; else it is a violation, of which one of each kind is printed:

- any other exception: a traceback for the user;
- more than ``SECONDS`` seconds of processor time, or twenty times as long by the clock: a hang;
- a message that has several lines, or does not name the file or flag and the place;
- a file that is there in part, or a run directory although nothing was run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from raft.errors import UserError  # noqa: E402

SECONDS = 20  # of processor time that a case may take


@dataclass(frozen=True)
class Target:
    """Something that reads what a user or a stranger wrote.

    Attributes:
        name: in the table.
        plans: what Hypothesis draws; small values, from which ``attempt`` makes the input.
        attempt: makes the input of a plan in an empty directory and has it read.
        names: whether a message says what is wrong where: message, directory -> bool.
        share: of all cases, relative to the others.
    """

    name: str
    plans: SearchStrategy[Any]
    attempt: Callable[[Any, Path], object]
    names: Callable[[str, Path], bool]
    share: int = 1


@dataclass
class Outcome:
    """What became of a target's cases; ``violations`` by kind, each with the smallest plan that was found."""

    name: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    violations: dict[str, str] = field(default_factory=dict)


class _Hang(BaseException):
    """Raised in the middle of a case that takes too long; no ``except Exception`` keeps it."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Hang

    # Of the processor's time, for a busy machine is no hang; and of the clock's, for whoever waits.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 20 * seconds))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def run_target(target: Target, cases: int, *, start: int = 0) -> Outcome:
    """Draw and try cases of one target."""
    outcome, began = Outcome(target.name), time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for number in range(start, start + 10):  # Hypothesis stops early where it believes to have seen everything
            if outcome.cases >= cases:
                break
            _draw(target, cases - outcome.cases, number, lambda plan: _try(target, plan, directory / "case", outcome))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _draw(target: Target, cases: int, number: int, do: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.plans)
    def each(plan: Any) -> None:
        do(plan)

    each()


def _try(target: Target, plan: Any, directory: Path, outcome: Outcome) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    outcome.cases += 1
    try:
        with _within(SECONDS):
            target.attempt(plan, directory)
        outcome.accepted += 1
        found = None
    except UserError as error:
        outcome.refused += 1
        found = _fault_of(str(error), target, directory)
    except _Hang:
        found = f"took more than {SECONDS} s"
    except Exception as error:
        found = f"{type(error).__name__} in {_place(error)}: {str(error)[:200]}"
    parts = [path.name for path in directory.rglob("*") if path.name.endswith((".part", ".old"))]
    if parts and found is None:
        found = f"left {parts[0]}"
    if found is not None:
        kind = found.split(": ")[0]
        shown = f"{found}\n    plan {plan!r}"[:3000]
        if len(shown) < len(outcome.violations.get(kind, shown + " ")):
            outcome.violations[kind] = shown


def _fault_of(message: str, target: Target, directory: Path) -> str | None:
    if not message.strip() or "\n" in message.strip():
        return f"message with several lines or none: {message!r}"
    if len(message) > 2000:
        return f"message of {len(message)} characters: {message[:300]!r}"
    return None if target.names(message, directory) else f"message that names no place: {message[:400]!r}"


def _place(error: BaseException) -> str:
    """The last function of the toolkit that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/raft/" in frame.filename and "site-packages" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.name}"


# ---------------------------------------------------------------- the command


def shared_out(targets: Sequence[Target], cases: int) -> list[int]:
    """Cases of each target, by their shares and at least one."""
    total = sum(target.share for target in targets)
    return [max(1, -(-cases * target.share // total)) for target in targets]


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each target."""
    lines = [f"{'target':<18}{'cases':>8}{'accepted':>10}{'refused':>9}{'violations':>12}{'seconds':>9}"]
    total = Outcome("all", *(sum(getattr(one, name) for one in outcomes) for name in ("cases", "accepted", "refused")))
    total.seconds = sum(one.seconds for one in outcomes)
    total.violations = {f"{one.name} {kind}": text for one in outcomes for kind, text in one.violations.items()}
    for one in (*outcomes, total):
        lines.append(
            f"{one.name:<18}{one.cases:>8,}{one.accepted:>10,}{one.refused:>9,}{len(one.violations):>12}"
            f"{one.seconds:>9.1f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Try cases of every target, print the table and what went wrong, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="names of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/fuzz.json"))
    options = parser.parse_args(argv)
    from benchmarks.fuzz_targets import all_targets

    outcomes = []
    with tempfile.TemporaryDirectory(prefix="fuzz-material-") as material:
        targets = [one for one in all_targets(Path(material)) if not options.only or one.name in options.only]
        for target, cases in zip(targets, shared_out(targets, options.cases), strict=True):
            outcomes.append(run_target(target, cases, start=1000 * options.seed))
            print(table(outcomes[-1:]).splitlines()[1], flush=True)
            for text in outcomes[-1].violations.values():
                print(f"  {text}", flush=True)
    print("\n" + table(outcomes))
    result = {
        "cases": sum(one.cases for one in outcomes),
        "violations": sum(len(one.violations) for one in outcomes),
        "targets": [asdict(one) for one in outcomes],
        "seconds_a_case_may_take": SECONDS,
        "seed": options.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
