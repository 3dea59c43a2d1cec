"""What makes a reward model better: `raft reward` over a grid of settings, three seeds each.

Every run is a `raft reward` of its own (after a `raft sft` on the chosen responses where the setting says so), several
at a time on one device. Results are written after each run, and a run that is in the file already is not made again:
a grid that is cut off goes on where it was. README.md says how the numbers are to be read.

    python benchmarks/reward_model.py --dataset_path harmless-base.jsonl.gz
    python benchmarks/reward_model.py --dataset_path harmless-base.jsonl.gz --quick
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.iteration import PACKAGES, machine_label, version  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.config import require  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.precision import Dtype, resolve_dtype  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

RECIPE: dict[str, Any] = {  # the shipped model's
    **{"lora_r": 8, "lora_alpha": 16, "learning_rate": 3e-4, "num_train_epochs": 1, "max_length": 256},
    **{"lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "validation_split_percentage": 10},
}
FULL = {"use_lora": False, "lora_r": None, "lora_alpha": None}
SFT = {"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "max_length": 512}
QUICK = {"num_rows": 40, "max_length": 64, "max_steps": 1}


@dataclass(frozen=True)
class Setting:
    """A row of the table: what differs from the recipe, by flag (None takes a flag out)."""

    name: str
    flags: dict[str, Any] = field(default_factory=dict)
    sft_first: bool = False


GRID = (  # what users ask first comes first
    Setting("recipe: LoRA r=8, 3e-4, one epoch, 256 tokens"),
    Setting("two epochs", {"num_train_epochs": 2}),
    Setting("SFT first", sft_first=True),
    Setting("learning rate 1e-4", {"learning_rate": 1e-4}),
    Setting("learning rate 1e-3", {"learning_rate": 1e-3}),
    Setting("LoRA r=32", {"lora_r": 32, "lora_alpha": 64}),
    Setting("LoRA r=2", {"lora_r": 2, "lora_alpha": 4}),
    Setting("full training, 1e-5", {**FULL, "learning_rate": 1e-5}),
    Setting("LoRA r=16, 512 tokens", {"lora_r": 16, "lora_alpha": 32, "max_length": 512}),
    Setting("SFT first, two epochs", {"num_train_epochs": 2}, sft_first=True),
    Setting("head starts at zero", {"score_head_init": "zero"}),
    Setting("head starts near zero", {"score_head_init": "small"}),
    Setting("full training, 3e-5", {**FULL, "learning_rate": 3e-5}),
    Setting("SFT first, full training, 1e-5", {**FULL, "learning_rate": 1e-5}, sft_first=True),
    Setting("label smoothing 0.1", {"label_smoothing": 0.1}),
    Setting("centering 0.01", {"centering": 0.01}),
    Setting("prompts not shared", {"share_prompts": False}),
)


@dataclass
class Ablation:
    """Ablation"""

    dataset_path: str = argument("", "Preference pairs, such as harmless-base.jsonl.gz of HH-RLHF.", required=True)
    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "Model to start from.")
    seeds: list[str] = argument(["0", "1", "2"], "Seeds; each setting runs once with each.")
    settings: list[str] = argument([], "Rows of the grid, by name or words of it. Default: all.", metavar="WORD")
    jobs: int = argument(1, "Runs at a time; on a GPU that small models do not fill, several.")
    per_device_train_batch_size: int = argument(16, "Pairs in one forward pass; a step has 16 pairs in any case.")
    dtype: Dtype = argument("auto", "Compute precision; auto is bf16 where the hardware multiplies it, else fp32.")
    attn_implementation: str = argument("auto", "As in `raft reward`.")
    save_steps: int = argument(10, "Checkpoint each run every so many steps, for one that is cut off; 0 is never.")
    time_limit: float = argument(0.0, "Stop after so many seconds and keep what is finished; 0 is no limit.")
    quick: bool = argument(False, "Two tiny runs, to see whether it works: two settings, one seed, one step.")
    keep_models: bool = argument(False, "Keep the run directories; else they are deleted once they are read.")
    runs_dir: str = argument("output_models/reward_ablation", "Where the runs are made.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")
    label: str | None = argument(None, "This device's name in the result's file name. Default: its GPU, or CPU.")

    def __post_init__(self) -> None:
        require(self.jobs >= 1, f"--jobs: found {self.jobs}, allowed are integers from 1.")
        size = self.per_device_train_batch_size
        require(size in (1, 2, 4, 8, 16), f"--per_device_train_batch_size: found {size}, allowed are divisors of 16.")
        require(all(seed.isdecimal() for seed in self.seeds), f"--seeds: found {self.seeds}, allowed are integers.")


@dataclass
class AblationConfig:
    """Train reward models over a grid of settings and seeds, and tabulate their held-out accuracy."""

    ablation: Ablation = field(default_factory=Ablation)

    examples: ClassVar[tuple[str, ...]] = (
        "python benchmarks/reward_model.py --dataset_path harmless-base.jsonl.gz --jobs 6 --time_limit 420",
        "python benchmarks/reward_model.py --dataset_path pairs.jsonl --settings 'two epochs' --seeds 0 1",
    )


def main(config: AblationConfig) -> dict[str, Any]:
    """Make the runs that are missing, write the result after each, print the table; gives what was written."""
    options = config.ablation
    grid = Grid(options)
    jobs = list(grid.missing())
    print(f"{len(jobs)} runs, {options.jobs} at a time; {len(grid.results['runs'])} are there", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(grid.run, setting, seed) for setting, seed in jobs]
        try:
            errors = [error for future in as_completed(futures) if (error := future.exception())]
        finally:
            grid.stop()  # after Ctrl-C: no further run begins, and none is left behind
    print(f"\n{table(grid.results['runs'])}\n\nwritten to {grid.path}")
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(jobs)} runs failed; the first: {errors[0]}") from errors[0]
    return grid.results


class Grid:
    """The runs of a grid: which are missing, how one is made, and what they gave so far."""

    def __init__(self, options: Ablation) -> None:
        self.options, self.runs_dir = options, Path(options.runs_dir)
        suffix = "-quick" if options.quick else ""
        self.path = Path(options.results_dir) / f"reward_model_{options.label or device_label()}{suffix}.json"
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {"runs": []}
        self.results |= {"recipe": RECIPE, "packages": {name: version(name) for name in PACKAGES if name != "trl"}}
        self.deadline = time.monotonic() + options.time_limit if options.time_limit else float("inf")
        self.stopped = False
        self.lock, self.sft_locks = Lock(), {seed: Lock() for seed in options.seeds}

    def missing(self) -> Iterator[tuple[Setting, str]]:
        """Settings and seeds that are asked for and have no result yet."""
        done = {(run["setting"], run["seed"]) for run in self.results["runs"]}
        words = self.options.settings
        names = {setting.name for setting in GRID}  # a whole name means that row alone
        grid = [
            setting
            for setting in GRID
            if not words or any(word == setting.name or (word not in names and word in setting.name) for word in words)
        ]
        if not grid:
            raise UserError(f"--settings: found {words}, allowed are words of: {'; '.join(s.name for s in GRID)}.")
        seeds = self.options.seeds
        if self.options.quick:
            grid, seeds = [grid[0], next((s for s in grid if s.sft_first), grid[-1])], seeds[:1]
        return ((setting, seed) for setting in grid for seed in seeds if (setting.name, int(seed)) not in done)

    def run(self, setting: Setting, seed: str) -> None:
        """Make one run and add its result to the file; nothing where time is up."""
        if self.out_of_time():
            return
        begin = time.monotonic()
        model = self.fine_tuned(seed) if setting.sft_first else self.options.model_name_or_path
        directory = self.runs_dir / f"{re.sub(r'[^a-z0-9]+', '-', setting.name.lower())}-{seed}"
        flags = self.flags(RECIPE | setting.flags, model, self.options.dataset_path, directory, seed)
        if model is None or not self.command("reward", flags, directory):
            return
        summary = json.loads((directory / "summary.json").read_text())
        result = {"setting": setting.name, "seed": int(seed), "flags": setting.flags, **summary}
        result |= {"seconds": round(time.monotonic() - begin, 1), "training_seconds": training_seconds(directory)}
        with self.lock:
            result |= {"dtype": resolve_dtype(self.options.dtype), "jobs": self.options.jobs}
            result |= {"attn_implementation": self.options.attn_implementation}
            self.results["runs"].append(result)
            write_json(self.path, self.results)
        print(f"{setting.name}, seed {seed}: {result['accuracy']:.3f}, {result['seconds']:.0f} s", flush=True)
        if not self.options.keep_models:
            shutil.rmtree(directory)

    def fine_tuned(self, seed: str) -> str | None:
        """The model after one epoch on the chosen responses of the training pairs; None where time is up."""
        directory = self.runs_dir / f"sft-{seed}"
        with self.sft_locks[seed]:
            if not (directory / "summary.json").is_file():
                data = self.runs_dir / "chosen.jsonl"
                with self.lock:
                    if not data.is_file():
                        write_chosen(self.options.dataset_path, data, self.options.quick)
                flags = self.flags(SFT, self.options.model_name_or_path, str(data), directory, seed)
                if not self.command("sft", flags, directory):
                    return None
        return str(directory / "final")

    def flags(self, settings: dict[str, Any], model: str | None, data: str, directory: Path, seed: str) -> list[str]:
        """Command-line flags of one run."""
        size = self.options.per_device_train_batch_size
        every = {"model_name_or_path": model, "dataset_path": data, "output_dir": directory, "seed": seed}
        every |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        every |= {"dtype": self.options.dtype, "attn_implementation": self.options.attn_implementation}
        quick = QUICK if self.options.quick else {}
        found = ["--resume", "auto", "--save_steps", str(self.options.save_steps)]  # cut off: goes on
        for name, value in (every | settings | quick).items():
            if isinstance(value, bool):
                found.append(f"--{name}" if value else f"--no_{name}")
            elif value is not None:
                found += [f"--{name}", str(value)]
        return found

    def command(self, name: str, flags: list[str], directory: Path) -> bool:
        """Run a `raft` command to its end; False where time is up. Its output is in a log beside its directory.

        Raises:
            RuntimeError: if it fails, with the end of what it printed.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        log = directory.with_suffix(".log")
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("OMP_NUM_THREADS", "1" if self.options.jobs > 1 else str(os.cpu_count() or 1))
        with log.open("wb") as output:
            command = [sys.executable, "-m", "raft", name, *flags]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if self.out_of_time():
                    return False
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"raft {name} {' '.join(flags)} failed:\n{log.read_text(errors='replace')[-3000:]}")
        return True

    def out_of_time(self) -> bool:
        """Whether no run should begin or go on."""
        return self.stopped or time.monotonic() > self.deadline

    def stop(self) -> None:
        """Let no run begin or go on."""
        self.stopped = True


def write_chosen(dataset_path: str, path: Path, quick: bool) -> None:
    """The chosen responses of the training pairs as conversations; the held-out pairs stay unseen."""
    from raft.data.loading import load_rows, split_rows

    rows = load_rows(dataset_path, kinds={"preference"}, max_rows=QUICK["num_rows"] if quick else None).rows
    train, _ = split_rows(rows, RECIPE["validation_split_percentage"])
    lines = (
        json.dumps({"messages": [*row.messages, {"role": "assistant", "content": row.chosen}]}, ensure_ascii=False)
        for row in train
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def training_seconds(run: Path) -> float:
    """From the first evaluation to the last, both in metrics.jsonl: no start-up, no export."""
    times = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return round(times[-1] - times[0], 1)


def gpu() -> str | None:
    """Name of the GPU, if there is one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def device_label() -> str:
    """The GPU's name, or the CPU's and its cores, for file names."""
    name = gpu()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if name else machine_label()


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table: a row for each setting, in the order of the grid."""
    lines = ["| setting | accuracy | min - max | seeds | trained parameters | seconds |", "|---|---|---|---|---|---|"]
    for setting in GRID:
        mine = [run for run in runs if run["setting"] == setting.name]
        if not mine:
            continue
        accuracies = [run["accuracy"] for run in mine]
        trained = f"{mine[0]['num_trained_parameters'] / 1e6:.2f}M"
        spread = f"{min(accuracies):.1%} - {max(accuracies):.1%}"
        took = mean(run["training_seconds"] for run in mine)
        lines.append(f"| {setting.name} | {mean(accuracies):.1%} | {spread} | {len(mine)} | {trained} | {took:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(parse(AblationConfig, sys.argv[1:], prog="python benchmarks/reward_model.py"))
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
