"""Part by part, beside what others do: sampling, scoring, fine-tuning, reward modelling, start-up, ranks, size.

Every peer runs on the CPU in a process of its own with the same model, texts, lengths, precision and threads. For a
GPU see gpu.py. README.md says what is compared with what.

    bash benchmarks/peers.sh                        # TRL, in an environment of its own
    .venv-benchmarks/bin/python benchmarks/parts.py
    python benchmarks/parts.py --parts sampling scoring
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script; the peers' processes take this path over
    sys.path.insert(0, str(ROOT))

from benchmarks import part_peers as peers  # noqa: E402
from benchmarks import training_peers as training  # noqa: E402
from benchmarks.common import Work  # noqa: E402
from benchmarks.iteration import (  # noqa: E402
    PACKAGES,
    cpu_model,
    machine_label,
    measure_apart,
    missing,
    num_cores,
    prepare_environment,
    version,
    without_paths,
)
from benchmarks.part_peers import Timed  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

Part = Literal["sampling", "scoring", "sft", "reward", "startup", "ranks", "size"]
Rows = dict[str, Timed]
# Part -> its unit, who is measured first (this toolkit), and the others.
PARTS: dict[str, tuple[str, dict[str, Callable[..., Timed]]]] = {
    "sampling": (
        "tokens",
        {"raft": peers.sample_raft, "raft, 64 at once": peers.sample_raft_64, "generate": peers.sample_generate},
    ),
    "scoring": (
        "texts",
        {
            "raft": peers.score_raft,
            "raft, texts whole": peers.score_sorted,
            "padded": peers.score_plain,
            "one by one": peers.score_singly,
        },
    ),
    "sft": (
        "rows",
        {
            "raft": training.sft_raft,
            "raft, padded": training.sft_raft_padded,
            "raft, one bucket": training.sft_raft_one_bucket,
            "trl": training.sft_trl,
            "trl packed": training.sft_trl_packed,
        },
    ),
    "reward": ("pairs", {"raft": training.reward_raft, "trl": training.reward_trl}),
}
WARMED_UP = ("sft", "reward")  # a first step also allocates gradients and moments
STOPS = (".", "\n", "?")  # where responses end in "ranks": after 3 to all tokens


@dataclass
class Measuring:
    """Measuring"""

    parts: list[Part] = argument(
        ["sampling", "scoring", "sft", "reward", "startup", "ranks", "size"], "What to measure."
    )
    sizes: list[int] = argument([64, 128, 256, 512, 1024, 2048], "b*k of 'size', with k=8.")
    small: bool = argument(False, "Tiny numbers, to see whether it runs: b=2, k=2, 8 tokens, one repetition.")
    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")


@dataclass
class PartsConfig:
    """Measure the parts of an iteration, each beside what others do."""

    measuring: Measuring = field(default_factory=Measuring)
    work: Work = field(default_factory=lambda: Work(num_prompts=8, num_samples_per_prompt=8, output_max_length=96))

    examples: ClassVar[tuple[str, ...]] = (
        "python benchmarks/parts.py",
        "python benchmarks/parts.py --parts sampling ranks --num_prompts 32 --label my-machine-32x8",
    )


def main(config: PartsConfig) -> dict[str, Any]:
    """Measure one part after the other, print a table for each as it is there, and write the result."""
    measuring, work, suffix = config.measuring, config.work, ""
    if measuring.small:
        work, suffix = (
            replace(work, num_prompts=2, num_samples_per_prompt=2, output_max_length=8, iterations=1),
            "-small",
        )
        measuring = replace(measuring, sizes=[4, 8])
    result: dict[str, Any] = {
        "work": without_paths(work),
        "machine": {"cpu": cpu_model(), "num_cores": num_cores(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "packages": {name: version(name) for name in PACKAGES},
        "parts": {},
    }
    path = Path(measuring.results_dir) / f"parts-{measuring.label or machine_label()}{suffix}.json"
    with TemporaryDirectory() as folder:
        texts = f"{folder}/texts.jsonl"
        for part in measuring.parts:
            unit, rows = measure(part, work, measuring, texts)
            print(table(part, unit, rows), flush=True)
            result["parts"][part] = {name: asdict(timed) for name, timed in rows.items()}
            write_json(path, result)
    print(f"\nwritten to {path}")
    return result


def measure(part: Part, work: Work, measuring: Measuring, texts: str) -> tuple[str, Rows]:
    """The part's unit and its measurements by name, this toolkit's first."""
    if part == "startup":
        return "starts", dict(startup(work))
    if part == "ranks":
        return "tokens", {f"{n} process{'es' if n > 1 else ''} of one thread": ranks(work, n) for n in (2, 1)}
    if part == "size":
        return "samples", {f"b*k = {size}": size_of_iteration(work, size) for size in measuring.sizes}
    unit, contestants = PARTS[part]
    if part != "sampling" and not Path(texts).exists():
        measure_apart(peers.sample_raft, once(work), texts)
    rows: Rows = {}
    # Round after round rather than one contestant after the other: a machine that slows down then slows all of them.
    for _ in range(work.iterations):
        for name, function in contestants.items():
            if name.startswith("trl") and missing("trl"):
                continue
            arguments = (texts,) if part != "sampling" or name == "raft" else ()
            found = measure_apart(function, once(work, warm_up=part in WARMED_UP), *arguments)
            rows[name] = rows[name].joined(found) if name in rows else found
    for name in contestants:
        if name not in rows:
            print(f"{part}, {name}: skipped, {missing('trl')}")
    return unit, rows


def once(work: Work, *, warm_up: bool = False) -> Work:
    """The same work in one repetition."""
    return replace(work, iterations=1, warm_up=warm_up)


# ---------------------------------------------------------------- whole commands


def startup(work: Work) -> Iterator[tuple[str, Timed]]:
    """Seconds until a command answers: its help, and the first sample of a run."""
    for name, command in {
        "raft --help": ["-m", "raft", "--help"],
        "raft align --help": ["-m", "raft", "align", "--help"],
        "import trl's trainer": ["-c", "from trl import GRPOTrainer"],
        "import transformers' trainer": ["-c", "from transformers import Trainer"],
    }.items():
        if "trl" in name and missing("trl"):
            continue
        seconds = []
        for _ in range(work.num_iterations):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
        yield name, Timed(work.timed(seconds), [1.0] * work.iterations)


RANK = """
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
torch.set_num_threads(1)
from dataclasses import asdict
from benchmarks.common import Work
from benchmarks.part_peers import sample_raft
from raft import distributed
distributed.initialize()
work = Work(**json.loads(sys.argv[1]))
timed = sample_raft(work, None, tuple(json.loads(sys.argv[2])))
if distributed.is_main():
    print(json.dumps(asdict(timed)))
distributed.shutdown()
"""


def ranks(work: Work, num_processes: int) -> Timed:
    """The sampler on so many processes of one thread each; responses end at a full stop, so lengths differ widely."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    with TemporaryDirectory() as folder:
        script = Path(folder, "rank.py")
        script.write_text(RANK)
        command = [sys.executable, *launcher, str(script), json.dumps(asdict(work)), json.dumps(STOPS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return Timed(**json.loads(done.stdout.splitlines()[-1]))


def size_of_iteration(work: Work, size: int) -> Timed:
    """Whole iterations of ``raft align`` of one size, with a model so small that what is around it shows."""
    from benchmarks.peers import measure_raft

    with TemporaryDirectory() as folder:
        for name, kind in (("policy", "LlamaForCausalLM"), ("reward", "LlamaForSequenceClassification")):
            build_small(work.model_name_or_path, f"{folder}/{name}", kind)
        k = 8 if size >= 64 else 2
        small = replace(
            work, model_name_or_path=f"{folder}/policy", reward_model_or_path=f"{folder}/reward",
            reward_base_model=None, num_prompts=size // k, num_samples_per_prompt=k, output_max_length=16,
            num_eval_prompts=2,
        )  # fmt: skip
        found = measure_apart(measure_raft, small)
    seconds = [lap["total"] for lap in found.iterations]
    phases = {name for lap in found.iterations for name in lap if name != "total"}
    notes = {name: median(lap.get(name, 0.0) for lap in found.iterations) for name in sorted(phases)}
    return Timed(seconds, [float(size)] * len(seconds), found.peak_rss_mib, notes)


def build_small(tokenizer_of: str, directory: str, kind: str) -> None:
    """A Llama of 13 million parameters, random, with the tokenizer of another model."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, num_labels=1, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


# ---------------------------------------------------------------- the tables


def rates(timed: Timed) -> list[float]:
    """Amount a second of every repetition."""
    return [amount / seconds for amount, seconds in zip(timed.amounts, timed.seconds, strict=True)]


def ratio(first: Timed, other: Timed) -> float:
    """How many times as fast the first is: the median over rounds where both have as many, else of the medians."""
    ours, theirs = rates(first), rates(other)
    if len(ours) == len(theirs):
        return median(a / b for a, b in zip(ours, theirs, strict=True))
    return median(ours) / median(theirs)


def slope(rows: Rows) -> float:
    """Least-squares slope of log time over log size: 1 is linear."""
    points = [(math.log(timed.amounts[0]), math.log(median(timed.seconds))) for timed in rows.values()]
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def table(part: str, unit: str, rows: Rows) -> str:
    """A part on the screen; ratios say how many times as fast the first row is."""
    first = next(iter(rows.values()))
    lines = [f"\n{part}: {unit} a second, median; ratio: how many times as fast the first is"]
    lines.append(f"{'':<30}{'rate':>10}{'ratio':>8}{'seconds':>10}{'min-max':>14}{'peak MiB':>10}")
    for name, timed in rows.items():
        spread = f"{min(timed.seconds):.2f}-{max(timed.seconds):.2f}"
        notes = ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in timed.notes.items())
        lines.append(
            f"{name:<30}{median(rates(timed)):>10.2f}{ratio(first, timed):>8.2f}{median(timed.seconds):>10.2f}"
            f"{spread:>14}"
            f"{timed.peak_mib or float('nan'):>10.0f}  {notes}"
        )
    if part == "size":
        lines.append(f"slope of log time over log size: {slope(rows):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    prepare_environment()
    try:
        main(parse(PartsConfig, sys.argv[1:], prog="python benchmarks/parts.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
