"""How long one iteration takes, and how much memory: this toolkit, a plain loop, and TRL's GRPOTrainer.

An iteration samples k responses to each of b prompts, scores them, and takes one optimizer step: on the best response
to every prompt (this toolkit and the plain loop) or on all of them (GRPO). Every peer runs on the CPU in a process of
its own, with the same prompts, models, lengths and threads. README.md says what is counted and what is not.

    python benchmarks/iteration.py
    python benchmarks/iteration.py --small
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata, util
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script; the peers' processes take this path over
    sys.path.insert(0, str(ROOT))

from benchmarks.common import Measurement, Precision, Work  # noqa: E402
from benchmarks.peers import measure_raft, measure_trl  # noqa: E402
from benchmarks.plain_loop import measure_old, measure_plain  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.precision import resolve_dtype  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

OTHERS: dict[str, Callable[[Work, Precision], Measurement]] = {
    "plain": measure_plain,
    "old": measure_old,
    "trl": measure_trl,
}
PHASES = ("sampling", "scoring", "training")
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "trl", "accelerate")


@dataclass
class Measuring:
    """Measuring"""

    peers: list[Literal["plain", "old", "trl"]] = argument(
        ["plain", "old", "trl"], "What to measure beside this toolkit."
    )
    precisions: list[Precision] = argument(
        [],
        "How those compute: bf16 (weights), autocast (bf16 over fp32 weights), fp32. The quickest one counts. Default: "
        "bf16 and autocast where --dtype auto is bf16, else fp32.",
    )
    small: bool = argument(False, "Tiny numbers, to see whether it runs: b=2, k=2, 8 tokens, one iteration.")
    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")


@dataclass
class BenchmarkConfig:
    """Measure one iteration of this toolkit beside a plain loop and TRL's GRPOTrainer."""

    measuring: Measuring = field(default_factory=Measuring)
    work: Work = field(default_factory=Work)

    examples: ClassVar[tuple[str, ...]] = (
        "python benchmarks/iteration.py",
        "python benchmarks/iteration.py --peers plain --iterations 5",
        "python benchmarks/iteration.py --cache_implementation static --label static_cache",
    )


def main(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure one peer after the other, print the table and write the result; gives what was written."""
    measuring = config.measuring
    work, suffix = (small(config.work), "-small") if measuring.small else (config.work, "")
    precisions = measuring.precisions or (["fp32"] if resolve_dtype("auto") == "fp32" else ["bf16", "autocast"])
    skipped: dict[str, str] = {peer: reason for peer in measuring.peers if (reason := missing(peer))}
    measured = {"raft": measure_apart(measure_raft, work)}
    for peer in measuring.peers:
        for precision in precisions if peer not in skipped else ():
            measured[f"{peer} {precision}"] = measure_apart(OTHERS[peer], work, precision)
    print(describe(measured, skipped))
    result = {
        "work": without_paths(work),
        "machine": machine(measured),
        "packages": {name: version(name) for name in PACKAGES},
        "peers": {peer: asdict(measurement) for peer, measurement in measured.items()},
        "ratios": ratios(measured),
        "skipped": skipped,
    }
    path = Path(measuring.results_dir) / f"iteration-{measuring.label or machine_label()}{suffix}.json"
    write_json(path, result)
    print(f"\nwritten to {path}")
    return result


def small(work: Work) -> Work:
    """The same work in tiny."""
    return replace(work, num_prompts=2, num_samples_per_prompt=2, output_max_length=8, iterations=1, num_eval_prompts=2)


def missing(peer: str) -> str | None:
    """Why a peer can not be measured here, or None."""
    if peer == "trl" and util.find_spec("trl") is None:
        return "trl is not installed; bash benchmarks/peers.sh makes an environment with it"
    return None


def measure_apart(measure: Callable[..., Measurement], *arguments: Any) -> Measurement:
    """Measure in a fresh process, so that memory, threads and settings of one peer are not another's."""
    print(f"{measure.__name__} {' '.join(a for a in arguments if isinstance(a, str))}", flush=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


# ---------------------------------------------------------------- what it was measured on


def without_paths(work: Work) -> dict[str, Any]:
    """The work as it goes into the result: names of models and data, not where they lie."""
    values = asdict(work)
    return {
        name: Path(value).name if "path" in name or "base" in name else value
        for name, value in values.items()
        if value is not None
    }


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(measured: dict[str, Measurement]) -> dict[str, Any]:
    """What a reader needs to judge the numbers; no host name."""
    threads = {peer: measurement.num_threads for peer, measurement in measured.items()}
    return {"cpu": cpu_model(), "num_cores": num_cores(), "num_threads": threads, "python": platform.python_version()}


def machine_label() -> str:
    """For file names: amd-epyc-2-cores."""
    return f"{re.sub(r'[^a-z0-9]+', '-', cpu_model().lower()).strip('-')}-{num_cores()}-cores"


# ---------------------------------------------------------------- the table


def seconds(measurement: Measurement, phase: str = "total") -> float:
    """Median over the timed iterations."""
    return median(lap.get(phase, 0.0) for lap in measurement.iterations)


def ratios(measured: dict[str, Measurement]) -> dict[str, float]:
    """Time of each other peer, in its quickest form, over ours."""
    found: dict[str, float] = {}
    for name, measurement in measured.items():
        peer, ratio = name.split()[0], seconds(measurement) / seconds(measured["raft"])
        found[peer] = min(ratio, found.get(peer, ratio))
    return {peer: ratio for peer, ratio in found.items() if peer != "raft"}


def describe(measured: dict[str, Measurement], skipped: dict[str, str]) -> str:
    """The table for the screen."""
    num_iterations = len(measured["raft"].iterations)
    columns = [*PHASES, "other", "total", "min-max", "ratio", "tokens", "peak MiB"]
    lines = [
        f"\nseconds an iteration, median of {num_iterations}; ratio to raft; tokens a response; peak memory",
        f"{'':<16}" + "".join(f" {column:>12}" for column in columns),
        *(_row(peer, measurement, measured["raft"]) for peer, measurement in measured.items()),
        *(f"{peer}: skipped, {reason}" for peer, reason in skipped.items()),
    ]
    apart = ", ".join(f"{name} {value:.1f}" for name, value in measured["raft"].apart.items())
    lines += [f"{peer} takes {ratio:.2f} times as long as raft" for peer, ratio in ratios(measured).items()]
    return "\n".join([*lines, f"not in an iteration of raft (seconds of the whole run): {apart}"])


def _row(peer: str, measurement: Measurement, ours: Measurement) -> str:
    phases = [seconds(measurement, phase) for phase in PHASES]
    other = median(lap["total"] - sum(lap.get(phase, 0.0) for phase in PHASES) for lap in measurement.iterations)
    totals = [lap["total"] for lap in measurement.iterations]
    cells = [f"{value:.2f}" for value in (*phases, other, seconds(measurement))]
    cells += [f"{min(totals):.2f}-{max(totals):.2f}", f"{seconds(measurement) / seconds(ours):.2f}"]
    cells += [f"{median(measurement.response_tokens):.1f}", f"{measurement.peak_rss_mib:.0f}"]
    return f"{peer:<16}" + "".join(f" {cell:>12}" for cell in cells)


def prepare_environment() -> None:
    """The CPU for every peer, also where there is a GPU; no forks of tokenizers that complain."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false")


if __name__ == "__main__":
    prepare_environment()
    try:
        main(parse(BenchmarkConfig, sys.argv[1:], prog="python benchmarks/iteration.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
